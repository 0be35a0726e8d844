"""``k8sdatapath flows``: what a server of flows says of itself, and reports of what it has seen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import typer

from k8sdatapath.cli.observe import (
    SETTINGS,
    add_choice_flags,
    add_server_flags,
    observed,
    read_flags,
    told,
)
from k8sdatapath.cli.output import Output, show, show_value
from k8sdatapath.model.flow import Flow, LostEvent, NodeState

__all__ = ["app", "asking_parser", "report_parser"]

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

    given = report_parser().parse_args(context.args, argparse.Namespace(field_mask=()))
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
