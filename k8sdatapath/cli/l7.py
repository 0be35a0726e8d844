"""``k8sdatapath l7``: requests that a node holds to policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from k8sdatapath.cli.output import Output, OutputOption, show
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.l7_view import L7View

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look at requests that are held to policies.")


def pinned(directory: Path) -> L7View:
    """A view of the HTTP policy whose maps are pinned in a directory."""
    from k8sdatapath.datapath.l7_view import L7View

    return L7View.bind(PinDir(directory))


@app.command()
def stats(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """Tell how often each thing has become of requests, and of their connections."""
    with pinned(pins) as view:
        show([{"what": what, "count": count} for what, count in view.stats().items()], output)


@app.command()
def connections(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List the connections whose requests are read, and how many each had."""
    with pinned(pins) as view:
        rows = [
            {
                "client": str(each.client),
                "server": str(each.server),
                "at": each.at,
                "state": each.state,
                "requests": each.requests,
                "responses": each.responses,
            }
            for each in view.connections()
        ]
    show(rows, output)
