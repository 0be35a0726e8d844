"""``k8sdatapath ct``: the flows in the conntrack table of a pin directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from k8sdatapath.cli.output import Output, OutputOption, show
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.datapath.flow import FlowFilter, FlowState
from k8sdatapath.model import Frontend, Protocol, address
from k8sdatapath.model.frontend import to_protocol
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.conntrack_table import ConntrackTable

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look at the flows that are translated per packet.")


# An address is of two types, which typer does not take.
ClientOption = Annotated[
    Any, typer.Option("--client", parser=address, metavar="ADDRESS", help="Only of this client.")
]
FrontendOption = Annotated[
    Frontend | None,
    typer.Option("--frontend", parser=Frontend.parse, metavar="FRONTEND", help="Only to 10.96.0.10:80/TCP."),
]
BackendOption = Annotated[
    Any,
    typer.Option("--backend", parser=address, metavar="ADDRESS", help="Only to backends at this address."),
]
ProtocolOption = Annotated[
    Protocol | None,
    typer.Option("--protocol", parser=to_protocol, metavar="NAME", help="Only TCP, UDP or SCTP."),
]
StateOption = Annotated[FlowState | None, typer.Option("--state", help="Only in this state.")]


def pinned(directory: Path) -> ConntrackTable:
    """The conntrack table whose map is pinned in a directory."""
    from k8sdatapath.datapath.conntrack_table import ConntrackTable

    return ConntrackTable.bind(PinDir(directory))


@app.command("list")
def list_(
    client: ClientOption = None,
    frontend: FrontendOption = None,
    backend: BackendOption = None,
    protocol: ProtocolOption = None,
    state: StateOption = None,
    pins: PinsOption = DEFAULT_PINS,
    output: OutputOption = Output.TABLE,
) -> None:
    """List flows: who dialled what, whom it reaches, and for how long it has been silent."""
    only = FlowFilter(client=client, frontend=frontend, backend=backend, protocol=protocol, state=state)
    with pinned(pins) as table:
        rows = [
            {
                "protocol": flow.protocol_name,
                "client": str(flow.client),
                "frontend": str(flow.frontend),
                "backend": str(flow.backend),
                "state": str(flow.state),
                "age": flow.age,
                "packets": flow.packets,
            }
            for flow in table.flows(only)
        ]
    show(rows, output)


@app.command()
def flush(
    client: ClientOption = None,
    frontend: FrontendOption = None,
    backend: BackendOption = None,
    protocol: ProtocolOption = None,
    state: StateOption = None,
    every: Annotated[bool, typer.Option("--all", help="All flows; needed if nothing else is said.")] = False,
    pins: PinsOption = DEFAULT_PINS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Forget flows. Their next packets begin new ones, which may go to other backends."""
    only = FlowFilter(client=client, frontend=frontend, backend=backend, protocol=protocol, state=state)
    if (only == FlowFilter()) is not every:
        raise typer.BadParameter("say which flows, or --all, and not both")
    with pinned(pins) as table:
        show([{"flushed": table.flush(only)}], output)


@app.command()
def stats(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """Tell how full the table is, and how many flows are in which state."""
    with pinned(pins) as table:
        known = table.stats()
    rows = {
        "entries": known.entries,
        "capacity": known.capacity,
        "pressure": round(known.pressure, 4),
        **{state.name.lower(): known.states.get(state, 0) for state in FlowState},
        "lost_halves": known.losses.halves,
        "lost_flows": known.losses.flows,
    }
    show([rows], output)
