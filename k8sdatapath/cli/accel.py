"""``k8sdatapath accel``: connections of a node that skip the stack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from attrs import asdict

from k8sdatapath.cli.output import Output, OutputOption, show
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.socket_accelerator import PairEnd, SocketAccelerator

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look at connections of a node that skip the stack.")


def pinned(directory: Path) -> SocketAccelerator:
    """The accelerator whose maps are pinned in a directory."""
    from k8sdatapath.datapath.socket_accelerator import SocketAccelerator

    return SocketAccelerator.bind(PinDir(directory))


@app.command()
def status(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """Tell what is chosen, and what has become of connections and their messages."""
    with pinned(pins) as accelerator:
        chosen = sorted(map(str, accelerator.accelerated))
        rows = [{"chosen": chosen, **asdict(accelerator.stats())}]
    if output is Output.TABLE:
        show([{"what": what, "count": n} for what, n in rows[0].items()], output)
    else:
        show(rows, output)


@app.command()
def pairs(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List the connections, with what each end has handed over, and sent through the stack."""
    with pinned(pins) as accelerator:
        rows = [
            {
                "client": str(pair.client.peer),
                "server": str(pair.server.peer),
                "dialled": str(pair.dialled),
                **_counts("client", pair.client),
                **_counts("server", pair.server),
            }
            for pair in accelerator.pairs()
        ]
    show(rows, output)


def _counts(name: str, end: PairEnd) -> dict[str, int]:
    return {f"{name}_messages": end.messages, f"{name}_bytes": end.bytes, f"{name}_others": end.others}
