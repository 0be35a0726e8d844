"""``k8sdatapath services``: what the service tables of a pin directory hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k8sdatapath.cli.output import Output, OutputOption, show
from k8sdatapath.model import Frontend
from k8sdatapath.pins import BPFFS, PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.service_table import ServiceTable

__all__ = ["DEFAULT_PINS", "PinsOption", "app"]

DEFAULT_PINS = BPFFS / "k8sdatapath"

app = typer.Typer(no_args_is_help=True, help="Look at the services in the kernel.")

PinsOption = Annotated[Path, typer.Option("--pins", metavar="DIR", help="Where the datapath is pinned.")]
FrontendArgument = Annotated[
    Frontend, typer.Argument(parser=Frontend.parse, metavar="FRONTEND", help="As in 10.96.0.10:80/TCP.")
]


def pinned(directory: Path) -> ServiceTable:
    """The service table whose maps are pinned in a directory."""
    from k8sdatapath.datapath.service_table import ServiceTable

    return ServiceTable.bind(PinDir(directory))


@app.command("list")
def list_(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List all services with their backends."""
    with pinned(pins) as table:
        rows = [
            {
                "frontend": str(service.frontend),
                "selection": service.selection.name.lower(),
                "backends": [str(backend) for backend in service.backends],
            }
            for service in table
        ]
    show(rows, output)


@app.command()
def get(
    frontend: FrontendArgument, pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE
) -> None:
    """Show the backends of one service, and how many flows each has been given."""
    with pinned(pins) as table:
        flows = table.flows(frontend)
        rows = [
            {
                "backend": str(backend),
                "state": backend.state.name.lower(),
                "weight": backend.weight,
                "flows": flows.get(backend, 0),
            }
            for backend in table.get(frontend).backends
        ]
    show(rows, output)


@app.command()
def resolve(
    frontend: FrontendArgument, pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE
) -> None:
    """Tell who would answer a new connection, by the lookups that the programs make."""
    with pinned(pins) as table:
        resolution = table.resolve(frontend)
    rows = [
        {"backend": str(backend), "selection": resolution.selection.name.lower(), "share": round(share, 4)}
        for backend, share in resolution.shares.items()
    ]
    show(rows, output)
