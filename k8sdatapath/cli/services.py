"""``k8sdatapath services``: what the service tables of a pin directory hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k8sdatapath.cli.output import Output, OutputOption, Row, show
from k8sdatapath.model import Frontend, FrontendKind, Service
from k8sdatapath.pins import BPFFS, PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.service_table import ServiceTable

__all__ = ["DEFAULT_PINS", "PinsOption", "app"]

DEFAULT_PINS = BPFFS / "k8sdatapath"

app = typer.Typer(no_args_is_help=True, help="Look at the services in the kernel.")

PinsOption = Annotated[
    Path, typer.Option("--pins", metavar="DIR", readable=False, help="Where the datapath is pinned.")
]
FrontendArgument = Annotated[
    Frontend, typer.Argument(parser=Frontend.parse, metavar="FRONTEND", help="As in 10.96.0.10:80/TCP.")
]


def pinned(directory: Path) -> ServiceTable:
    """The service table whose maps are pinned in a directory."""
    from k8sdatapath.datapath.service_table import ServiceTable

    return ServiceTable.bind(PinDir(directory))


def show_pinned(directory: Path, output: Output, rows: Callable[[ServiceTable], Iterable[Row]]) -> None:
    """Show rows that are made of the table pinned in a directory."""
    with pinned(directory) as table:
        made = list(rows(table))
    show(made, output)


def rules_at(service: Service, kind: FrontendKind) -> list[str]:
    """What else decides about who gets which backend at its frontends of this kind."""
    local = service.internal_local if kind is FrontendKind.CLUSTER_IP else service.external_local
    rules = ["local"] if local else []
    if service.affinity_timeout:
        rules.append(f"affinity {service.affinity_timeout} s")
    if kind is FrontendKind.LOAD_BALANCER:
        rules += [f"from {each}" for each in service.source_ranges]
    return rules


@app.command("list")
def list_(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List all frontends of all services, with their backends."""

    def rows(table: ServiceTable) -> Iterator[Row]:
        for service in table:
            for frontend, kind in zip(service.frontends, service.kinds, strict=True):
                yield {
                    "frontend": str(frontend),
                    "kind": kind.name.lower(),
                    "selection": service.selection.name.lower(),
                    "rules": rules_at(service, kind),
                    "backends": [str(backend) for backend in service.backends],
                }

    show_pinned(pins, output, rows)


@app.command()
def get(
    frontend: FrontendArgument, pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE
) -> None:
    """Show the backends of one service, and how many flows each has been given."""

    def rows(table: ServiceTable) -> Iterator[Row]:
        flows = table.flows(frontend)
        for backend in table.get(frontend).backends:
            yield {
                "backend": str(backend),
                "state": backend.state.name.lower(),
                "weight": backend.weight,
                "flows": flows.get(backend, 0),
            }

    show_pinned(pins, output, rows)


@app.command()
def resolve(
    frontend: FrontendArgument,
    outside: Annotated[
        bool, typer.Option("--outside", help="For a connection from outside of the node.")
    ] = False,
    pins: PinsOption = DEFAULT_PINS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell who would answer a new connection, by the lookups that the programs make."""

    def rows(table: ServiceTable) -> Iterator[Row]:
        resolution = table.resolve(frontend, outside=outside)
        selection = resolution.selection.name.lower()
        for backend, share in resolution.shares.items():
            yield {"backend": str(backend), "selection": selection, "share": round(share, 4)}

    show_pinned(pins, output, rows)
