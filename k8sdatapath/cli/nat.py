"""``k8sdatapath nat``: the flows of pods that leave under another address."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from k8sdatapath.cli.output import Output, OutputOption, show
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.model import Protocol, address
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.masquerader import Masquerader

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look at the flows of pods that leave under another address.")

PodOption = Annotated[
    Any, typer.Option("--pod", parser=address, metavar="ADDRESS", help="Only of the pod with this address.")
]


def pinned(directory: Path) -> Masquerader:
    """The masquerader whose maps are pinned in a directory."""
    from k8sdatapath.datapath.masquerader import Masquerader

    return Masquerader.bind(PinDir(directory))


@app.command("list")
def list_(
    pod: PodOption = None, pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE
) -> None:
    """List mappings: which pod talks to whom, and under which address and port."""
    with pinned(pins) as masquerader:
        rows = [
            {
                "protocol": mapping.protocol_name,
                "pod": str(mapping.pod),
                "leaves_as": str(mapping.leaves_as),
                "remote": str(mapping.remote),
                "state": str(mapping.state),
                "age": mapping.age,
                "packets": mapping.packets,
                "unsupported": mapping.unsupported,
            }
            for mapping in masquerader.mappings()
            if pod in (None, mapping.pod.address)
        ]
    show(rows, output)


@app.command()
def flush(
    pod: PodOption = None,
    every: Annotated[bool, typer.Option("--all", help="All mappings; needed if no pod is named.")] = False,
    pins: PinsOption = DEFAULT_PINS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Forget mappings. What comes after begins new ones, under its own port if that is free."""
    if (pod is None) is not every:
        raise typer.BadParameter("say which pod, or --all, and not both")
    with pinned(pins) as masquerader:
        show([{"flushed": masquerader.flush(pod)}], output)


@app.command()
def stats(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """Tell of each remote end how many mappings lead there, and how many packets found no port."""
    with pinned(pins) as masquerader:
        ends = Counter(
            (str(each.leaves_as.address), str(each.remote), each.protocol) for each in masquerader.mappings()
        )
        lost = {
            (str(each.leaves_as), str(each.remote), each.protocol): each.packets
            for each in masquerader.exhausted()
        }
    rows = [
        {
            "leaves_as": end[0],
            "remote": end[1],
            "protocol": Protocol(end[2]).name if end[2] in set(Protocol) else str(end[2]),
            "mappings": ends[end],
            "no_port": lost.get(end, 0),
        }
        for end in sorted(ends.keys() | lost.keys(), key=lambda end: (-lost.get(end, 0), -ends[end], end))
    ]
    show(rows, output)
