"""``k8sdatapath observe``: flows, as ``hubble observe`` shows them and with its flags."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from k8sdatapath.cli.flow_flags import FlowFlags, add_filter_flags
from k8sdatapath.cli.flow_print import TIME_FORMATS, Shape, cells, wants_colour
from k8sdatapath.errors import ModelError, SourceError
from k8sdatapath.model.address import shown
from k8sdatapath.model.flow import Flow, FlowEvent, NodeState, NodeStatus
from k8sdatapath.model.flow_match import matcher
from k8sdatapath.model.message import timestamp

if TYPE_CHECKING:
    from k8sdatapath.hubble.client import Asked, Observed

__all__ = [
    "SETTINGS",
    "add_choice_flags",
    "add_server_flags",
    "moment",
    "observe",
    "observe_parser",
    "observed",
    "read_flags",
    "show_flows",
    "told",
    "whole_number",
]

SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""Of a command whose flags are parsed here: their order matters, which click does not tell."""

DEFAULT_SOCKET = "/run/k8sdatapath/hubble.sock"
DEFAULT_SERVER = "localhost:4245"
_LAST = 20
_WRONG = (NodeState.NODE_ERROR, NodeState.NODE_UNAVAILABLE)
_SECOND = 10**9
_LONGEST = 2000 * 366 * 86400
"""Seconds before now: what is further back has no place in the protocol."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s|us|µs|ns))+", re.ASCII | re.IGNORECASE)


def observe(context: typer.Context) -> None:
    """Show flows: the last ones, or as they come. Flags are those of hubble observe; see --help."""
    show_flows(context.args)


def show_flows(args: Sequence[str]) -> None:
    """What ``observe`` does with flags; the word ``flows`` may be before them, and Hubble's other words."""
    if args[:1] == ["agent-events"]:
        from k8sdatapath.cli.flows import show_agent_events

        show_agent_events(args[1:])
        return
    given = observe_parser().parse_args(args[1:] if args[:1] == ["flows"] else args)
    flags = read_flags(given)
    if given.print_raw_filters:
        _print_filters(flags)
        return
    _print(told(given, flags), given)


def read_flags(given: argparse.Namespace) -> FlowFlags:
    """The flags about flows, which make sense."""
    try:
        flags = FlowFlags.of(given)
        matcher(flags.allow, flags.deny)
    except ModelError as error:
        raise typer.BadParameter(str(error)) from None
    return flags


def told(given: argparse.Namespace, flags: FlowFlags) -> Iterator[FlowEvent]:
    """The flows that flags mean, of a file or of a server."""
    _refuse_contradictions(given)
    if 0 in (given.first, given.last) and not given.follow:  # to servers this is no number at all
        return
    if given.input_file is not None:
        matches = matcher(flags.allow, flags.deny)
        yield from _chosen(_lines(given.input_file, matches, quiet=given.silent_errors), given)
        return
    with observed(given) as server:
        yield from server.flows(_asked(given, flags))


def observe_parser() -> argparse.ArgumentParser:
    """What reads the flags."""
    parser = argparse.ArgumentParser("k8sdatapath observe", "%(prog)s [FLAGS]", description=observe.__doc__)
    add_choice_flags(parser)
    form = parser.add_argument_group("how it looks")
    shapes = ("compact", "dict", "json", "jsonpb", "table", "tab")
    form.add_argument("-o", "--output", choices=shapes, type=str.lower, default="compact")
    form.add_argument("--time-format", choices=tuple(TIME_FORMATS), default="StampMilli")
    form.add_argument("--print-node-name", action="store_true")
    form.add_argument("--print-policy-names", action="store_true")
    form.add_argument("--numeric", action="store_true", help="the same as --ip-translation=false")
    form.add_argument("--ip-translation", help="names instead of addresses", **_SWITCH, default=True)
    form.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    form.add_argument("--field-mask", type=_list, default=(), help="only these fields: a,b.c (with json)")
    form.add_argument("--use-default-field-masks", help="passed over: nothing is left out", **_SWITCH)
    form.add_argument("--print-raw-filters", action="store_true", help="the filters as YAML, and no flows")
    form.add_argument("-s", "--silent-errors", action="store_true", help="no warnings, nothing about nodes")
    form.add_argument("-D", "--debug", action="store_true", help="also which nodes a relay has found")
    return parser


def add_choice_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags that say which flows, and from where; :func:`told` reads them."""
    which = parser.add_argument_group("how many")
    which.add_argument("--last", type=whole_number, help=f"the newest so many (default {_LAST})")
    which.add_argument("--first", type=whole_number, help="the oldest so many")
    which.add_argument("--all", action="store_true", help="all that there are")
    which.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    which.add_argument("--since", type=moment, help="from then on: 5m, or 2006-01-02T15:04:05Z")
    which.add_argument("--until", type=moment, help="up to then")
    add_server_flags(parser)
    parser.add_argument("--input-file", metavar="FILE", help="lines of JSON instead of a server; - is stdin")
    add_filter_flags(parser)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags that say who is asked; :func:`observed` reads them."""
    group = parser.add_argument_group("who is asked")
    default = os.environ.get("HUBBLE_SERVER", "")
    group.add_argument("--server", default=default, help=f"{DEFAULT_SERVER}, tls://host:port, unix:///path")
    group.add_argument("--tls", action="store_true", help="the server has to prove who it is")
    group.add_argument("--tls-ca-cert-files", type=_paths, action="extend", metavar="FILE,...")
    group.add_argument("--tls-client-cert-file", type=Path, metavar="FILE")
    group.add_argument("--tls-client-key-file", type=Path, metavar="FILE")
    group.add_argument("--tls-server-name", default="", metavar="NAME")


def observed(given: argparse.Namespace) -> Observed:
    """The server that flags name; without one, this node's agent, or a relay on this machine."""
    from k8sdatapath.hubble.client import Observed, Trust

    local = f"unix://{DEFAULT_SOCKET}" if Path(DEFAULT_SOCKET).exists() else DEFAULT_SERVER
    files = (given.tls_ca_cert_files, given.tls_client_cert_file, given.tls_client_key_file)
    trust = None
    if given.tls or given.tls_server_name or any(files):
        trust = Trust(
            authorities=files[0], certificate=files[1], key=files[2], server_name=given.tls_server_name
        )
    advice = "" if given.server else "an agent tells flows with hubble.enabled; --server names another server"
    return Observed(given.server or local, trust, advice=advice)


# -- which ------------------------------------------------------------------------------------------


def _asked(given: argparse.Namespace, flags: FlowFlags) -> Asked:
    from k8sdatapath.hubble.client import Asked

    number = given.first if given.first is not None else given.last
    if number is None and not (given.all or given.follow or given.since or given.until):
        number = _LAST
    return Asked(
        allow=flags.allow,
        deny=flags.deny,
        number=number,
        first=given.first is not None,
        follow=given.follow,
        since=given.since,
        until=None if given.follow else given.until,
        fields=given.field_mask,
    )


def _refuse_contradictions(given: argparse.Namespace) -> None:
    wanted = [
        name for name in ("first", "last", "all", "follow") if getattr(given, name) not in (None, False)
    ]
    if set(wanted) not in ({"last", "follow"}, {"all", "follow"}) and len(wanted) > 1:
        raise typer.BadParameter(f"--{wanted[0]} and --{wanted[1]} exclude each other")
    if given.field_mask and given.output not in ("json", "jsonpb"):
        raise typer.BadParameter("--field-mask goes with -o json")
    if given.output in ("table", "tab") and given.follow:
        raise typer.BadParameter("a table has an end: --follow goes with the other outputs")


def _lines(name: str, matches: Callable[[Flow], bool], *, quiet: bool) -> Iterator[FlowEvent]:
    """The flows of a file that match, and losses. A line that is none is told of, unless ``quiet``.

    :raises SourceError: there are lines, and not one is any of these.
    """
    read, wrong = 0, ""
    with sys.stdin.buffer if name == "-" else open(name, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                event = _event(line.decode(errors="replace"))
            except ModelError as error:
                wrong = wrong or f"{name}, line {number}: {error}"
                if not quiet:
                    print(f"{name}, line {number} is passed over: {error}", file=sys.stderr)
                continue
            read += 1
            if event is not None and (not isinstance(event.response, Flow) or matches(event.response)):
                yield event
    if wrong and not read:
        raise SourceError(wrong)


def _event(line: str) -> FlowEvent | None:
    """What a line tells; None of what is neither flow nor loss, as exporters write of agents.

    :raises ModelError: it is not JSON, or not of such a thing.
    """
    event = FlowEvent.from_json(line)
    if event.response is not None:
        return event
    if any(name in json.loads(line) for name in ("agent_event", "debug_event")):
        return None
    return FlowEvent.of(Flow.from_json(line))  # an old way of writing: the flow by itself


def _chosen(events: Iterator[FlowEvent], given: argparse.Namespace) -> Iterator[FlowEvent]:
    since, until = given.since or 0, given.until or sys.maxsize
    within = (each for each in events if since <= (_time(each) or since) <= until)
    if given.first is not None:
        count = 0
        for event in within:
            count += isinstance(event.response, Flow)
            if count > given.first:
                return
            yield event
    elif given.last is not None:
        yield from deque(within, maxlen=given.last)
    else:
        yield from within


def _time(event: FlowEvent) -> int:
    return event.response.time if isinstance(event.response, Flow) else event.time


# -- how it looks -----------------------------------------------------------------------------------


def _print(events: Iterable[FlowEvent], given: argparse.Namespace) -> None:
    shape = Shape(
        time=given.time_format,
        colour=given.output in ("compact", "dict") and wants_colour(given.color, dict(os.environ)),
        translate=given.ip_translation and not given.numeric,
        node=given.print_node_name,
        policies=given.print_policy_names,
    )
    table: list[dict[str, str]] = []
    between = ""
    for event in events:
        if isinstance(event.response, NodeStatus):
            _print_status(event, shape, given)
        elif given.output in ("json", "jsonpb"):
            bare = os.environ.get("HUBBLE_COMPAT") == "legacy-json-output" and given.output == "json"
            print(event.response.to_json() if bare and event.response is not None else event.to_json())
        elif given.output == "dict":
            told = cells(shape, event)
            print(between + "\n".join(f"{head:>11}: {text}" for head, text in told.items()))
            between = "------------\n"
        elif given.output == "compact":
            print(shape.line(event))
        else:
            table.append(cells(shape, event))
    _print_table(table)


def _print_status(event: FlowEvent, shape: Shape, given: argparse.Namespace) -> None:
    """What a relay says of its nodes is no flow: it goes elsewhere, and mostly only what is wrong."""
    status = event.response
    bad = isinstance(status, NodeStatus) and status.state_change in _WRONG
    if not given.silent_errors and (bad or given.debug):
        as_json = given.output in ("json", "jsonpb")
        print(event.to_json() if as_json else shape.line(event), file=sys.stderr)


def _print_table(rows: list[dict[str, str]]) -> None:
    heads = list(rows[0]) if rows else []
    lines = [dict(zip(heads, heads, strict=True)), *rows] if rows else []
    widths = {head: max(len(line[head]) for line in lines) for head in heads}
    for line in lines:
        print("   ".join(line[head].ljust(widths[head]) for head in heads).rstrip())


def _print_filters(flags: FlowFlags) -> None:
    import yaml

    lists = {"allowlist": flags.allow, "denylist": flags.deny}
    told = {name: [each.to_json() for each in filters] for name, filters in lists.items() if filters}
    print(yaml.safe_dump(told, width=1 << 30), end="")


# -- values of flags --------------------------------------------------------------------------------


def whole_number(text: str) -> int:
    """The number of a flag."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number, 0 or more")
    return int(text)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{shown(text)} is neither true nor false")
    return text.lower() == "true"


_SWITCH: dict[str, Any] = {"type": _flag, "nargs": "?", "const": True}
"""Of a flag that may be given a value, as in ``--ip-translation=false``."""


def _paths(text: str) -> list[Path]:
    return [Path(name) for name in _list(text)]


def _list(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def moment(text: str) -> int:
    """Nanoseconds since 1970, of a time or of a duration before now."""
    if _DURATION.fullmatch(text):
        pieces = re.findall(r"([\d.]+)([a-zµ]+)", text.lower())
        seconds = sum(float(count) * _UNITS[unit] for count, unit in pieces)
        if seconds > _LONGEST:
            raise argparse.ArgumentTypeError(f"{shown(text)} is longer than there has been time")
        return time.time_ns() - int(seconds * _SECOND)
    try:
        return timestamp(text)
    except ModelError:
        for form in ("%Y-%m-%d", "%Y-%m-%dT%H%z", "%Y-%m-%dT%H:%M%z", "%a, %d %b %Y %H:%M:%S %z"):
            try:
                when = datetime.strptime(text, form)
            except ValueError:
                continue
            return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * _SECOND
    raise argparse.ArgumentTypeError(f"{shown(text)} is neither a duration like 5m nor a point in time")
