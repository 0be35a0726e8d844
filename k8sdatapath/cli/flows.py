"""``k8sdatapath flows``: what a server of flows says of itself, and reports of what it has seen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from k8sdatapath.cli.flow_print import Shape, clean
from k8sdatapath.cli.observe import (
    SETTINGS,
    add_choice_flags,
    add_server_flags,
    moment,
    observed,
    read_flags,
    told,
    whole_number,
)
from k8sdatapath.cli.output import Output, show, show_value
from k8sdatapath.model.agent_event import AgentEvent, AgentEventType
from k8sdatapath.model.flow import Flow, LostEvent, NodeState

__all__ = ["app", "asking_parser", "events_parser", "report_parser", "show_agent_events"]

_SECOND = 10**9

app = typer.Typer(no_args_is_help=True, help="Ask about flows; k8sdatapath observe shows them.")


def asking_parser() -> argparse.ArgumentParser:
    """What reads the flags of commands that only ask a server."""
    parser = argparse.ArgumentParser("k8sdatapath flows COMMAND", "%(prog)s [FLAGS]")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_server_flags(parser)
    return parser


@app.command(context_settings=SETTINGS)
def nodes(context: typer.Context) -> None:
    """List the nodes that a server tells flows of. Flags say which server; see --help."""
    given = asking_parser().parse_args(context.args)
    with observed(given) as server:
        found = server.nodes()
    rows = [
        {
            "name": each.get("name", ""),
            "state": NodeState(each.get("state", 0)).name.removeprefix("NODE_").lower(),
            "up": f"{each.get('uptime_ns', 0) // _SECOND} s",
            "flows": f"{each.get('num_flows', 0)}/{each.get('max_flows', 0)}",
            "seen": each.get("seen_flows", 0),
            "version": each.get("version", ""),
        }
        for each in found
    ]
    show(rows, Output(given.output))


@app.command(context_settings=SETTINGS)
def namespaces(context: typer.Context) -> None:
    """List the namespaces that flows of the last hour were of. Flags say which server; see --help."""
    given = asking_parser().parse_args(context.args)
    with observed(given) as server:
        found = server.namespaces()
    rows = [{"namespace": name, "cluster": cluster} for cluster, name in found]
    show(rows, Output(given.output))


@app.command(context_settings=SETTINGS)
def status(context: typer.Context) -> None:
    """Show how full the ring of flows is, and how fast it fills. Flags say which server; see --help."""
    given = asking_parser().parse_args(context.args)
    with observed(given) as server:
        found: dict[str, Any] = server.status()
    if given.output == "json":
        show_value(found, Output.JSON)
        return
    held, most = found.get("num_flows", 0), found.get("max_flows", 0)
    nodes = found.get("num_connected_nodes")
    row = {
        "flows": f"{held}/{most} ({100 * held / most if most else 0:.1f}%)",
        "seen": found.get("seen_flows", 0),
        "flows/s": f"{found.get('flows_rate', 0.0):.2f}",
        "up": f"{found.get('uptime_ns', 0) // _SECOND} s",
        "nodes": "one" if nodes is None else f"{nodes}, {found.get('num_unavailable_nodes', 0)} unavailable",
        "version": found.get("version", ""),
    }
    show([row], Output.TABLE)


def events_parser() -> argparse.ArgumentParser:
    """What reads the flags of ``agent-events``."""
    parser = asking_parser()
    parser.add_argument("--last", type=whole_number, help="the newest so many (default: all that are kept)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    parser.add_argument("--since", type=moment, help="from then on: 5m, or 2006-01-02T15:04:05Z")
    return parser


@app.command(context_settings=SETTINGS)
def agent_events(context: typer.Context) -> None:
    """List what agents have done: policies, pods, addresses. Flags say which server; see --help."""
    show_agent_events(context.args)


def show_agent_events(args: Sequence[str]) -> None:
    """What ``agent-events`` does with flags."""
    given = events_parser().parse_args(args)
    if given.last == 0 and not given.follow:  # to servers this is no number at all
        return
    shape = Shape(time="StampMilli")
    with observed(given) as server:
        for each in server.agent_events(number=given.last, follow=given.follow, since=given.since):
            if given.output == "json":
                print(each.to_json(), flush=True)
            else:
                print(
                    f"{shape.when(each.time)} [{clean(each.node_name)}]: {_words(each.agent_event)}",
                    flush=True,
                )


def _words(event: AgentEvent | None) -> str:
    """An event by the names of the protocol, what is not zero of it."""
    if event is None:
        return "nothing"
    known = event.type in AgentEventType.__members__.values()
    kind = AgentEventType(event.type).name if known else str(event.type)
    told = event.notification.to_dict() if event.notification is not None else {}
    values = (f"{name}={','.join(v) if isinstance(v, list) else v}" for name, v in told.items())
    return clean(" ".join([kind, *values]))


def report_parser() -> argparse.ArgumentParser:
    """What reads the flags of ``report``."""
    prog = "k8sdatapath flows report"
    parser = argparse.ArgumentParser(prog, "%(prog)s [FLAGS]", description=report.__doc__)
    parser.add_argument("-o", "--output", default="flows.html", metavar="FILE", help="where; - is stdout")
    parser.add_argument("--title", default="Flows")
    add_choice_flags(parser)
    return parser


@app.command(context_settings=SETTINGS)
def report(context: typer.Context) -> None:
    """Write a page about flows: who talks to whom, what was dropped and why. Flags are those of observe."""
    from k8sdatapath.pictures import report as page

    given = report_parser().parse_args(context.args, argparse.Namespace(field_mask=(), silent_errors=False))
    flags = read_flags(given)
    if given.follow:
        raise typer.BadParameter("a report has an end: --follow goes with observe")
    if given.last is None and given.first is None:
        given.all = True
    seen = (each.response for each in told(given, flags))
    text = page((each for each in seen if isinstance(each, Flow | LostEvent)), title=given.title)
    if given.output == "-":
        print(text, end="")
    else:
        Path(given.output).write_text(text, encoding="utf-8")
        print(f"{given.output}: {len(text):,} bytes")
