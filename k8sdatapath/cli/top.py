"""``k8sdatapath top``: who is asked most just now, and what is dropped why."""

from __future__ import annotations

import argparse
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from k8sdatapath.cli.observe import add_choice_flags, read_flags, told
from k8sdatapath.cli.output import console
from k8sdatapath.errors import DatapathError
from k8sdatapath.model.address import shown
from k8sdatapath.model.flow import Flow, FlowEvent, LostEvent
from k8sdatapath.pictures import Tally

__all__ = ["top", "top_parser"]

_DAY = 86400.0
_UNASKED = {"field_mask": (), "output": "compact", "silent_errors": False}
"""Of the flags of ``observe``, those that are none here."""
_MOST = 100_000
"""Flows that are looked at; of more in the window, the newest."""


def top_parser() -> argparse.ArgumentParser:
    """What reads the flags."""
    parser = argparse.ArgumentParser("k8sdatapath top", "%(prog)s [FLAGS]", description=top.__doc__)
    parser.add_argument("--window", type=_seconds, default=60.0, metavar="SECONDS", help="flows of so long")
    parser.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks")
    parser.add_argument("--rows", type=_rows, default=15)
    parser.add_argument("--once", action="store_true", help="one look at what there is")
    add_choice_flags(parser)
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _DAY:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number of seconds, above 0 and up to a day")
    return seconds


def _rows(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number of rows, 1 or more")
    return int(text)


def top(context: typer.Context) -> None:
    """Show who is asked most just now, and what is dropped why. Flags are those of observe; see --help."""
    given = top_parser().parse_args(context.args, argparse.Namespace(**_UNASKED))
    flags = read_flags(given)
    if given.once or given.input_file is not None:
        given.all = given.last is None and given.first is None and given.since is None
        console().print(_view(Tally(_items(told(given, flags))), given.rows))
        return
    given.follow, given.last = True, given.last or 1000
    seen: deque[Flow | LostEvent] = deque(maxlen=_MOST)
    ended: list[DatapathError | None] = []

    def read() -> None:
        try:
            seen.extend(_items(told(given, flags)))
            ended.append(None)
        except DatapathError as error:
            ended.append(error)

    threading.Thread(target=read, daemon=True).start()
    terminal = console()
    with ExitStack() as own:
        live = None
        if terminal.is_terminal:
            live = own.enter_context(Live(console=terminal, screen=True, auto_refresh=False))
        while not ended:
            time.sleep(given.interval)
            oldest = time.time_ns() - int(given.window * 10**9)
            view = _view(Tally(each for each in list(seen) if _time(each) >= oldest), given.rows)
            if live is not None:
                live.update(view, refresh=True)
            else:
                terminal.print(view)
    if ended[0] is not None:
        raise ended[0]


def _items(events: Iterator[FlowEvent]) -> Iterator[Flow | LostEvent]:
    for event in events:
        if isinstance(event.response, Flow | LostEvent):
            yield event.response


def _time(item: Flow | LostEvent) -> int:
    return item.time if isinstance(item, Flow) else item.last


def _view(tally: Tally, rows: int) -> Group:
    seconds = max(tally.seconds, 1.0)
    head = f"{tally.flows:,} flows, {tally.flows / seconds:,.1f}/s"
    dropped = tally.drops.total()
    lost = f", {tally.lost:,} events lost" if tally.lost else ""
    busiest = Table("WHO", "FLOWS/S", "DROPPED", "MEDIAN", "PORTS", box=None, pad_edge=False)
    for party, link in tally.busiest(rows):
        values = sorted(link.latencies)
        median = f"{values[len(values) // 2] / 10**6:.3g} ms" if values else ""
        drops = Text(f"{link.dropped.total():,}", "red" if link.dropped else "dim")
        ports = ", ".join(port for port, _ in link.ports.most_common(3))
        flows = f"{(link.flows + link.dropped.total()) / seconds:,.1f}"
        busiest.add_row(Text(str(party), "cyan"), flows, drops, median, ports)
    reasons = Table("REASON", "FLOWS", "FROM", "TO", box=None, pad_edge=False)
    for one, other, reason, count in tally.denied(rows):
        reasons.add_row(Text(reason, "red"), f"{count:,}", Text(str(one)), Text(str(other)))
    parts: list[Text | Table] = [Text(f"{head}, {dropped:,} dropped{lost}", "bold"), Text(), busiest]
    return Group(*parts, Text(), reasons) if dropped else Group(*parts)
