"""``k8sdatapath ipcache``: who is behind which address, as the programs of a node see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from k8sdatapath.cli.output import Output, OutputOption, Row, show
from k8sdatapath.cli.policy import pinned
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption

if TYPE_CHECKING:
    from k8sdatapath.datapath.policy_view import LiveParty

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look at who is behind which address.")


@app.command("list")
def list_(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List addresses and networks: whose they are, by identity, and by the number that rules have for it."""
    with pinned(pins) as view:
        show([_row(each) for each in view.parties()], output)


@app.command()
def get(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Of anybody.")],
    pins: PinsOption = DEFAULT_PINS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell who is behind an address, by the lookups that the programs make."""
    with pinned(pins) as view:
        show([_row(view.party(address))], output)


def _row(party: LiveParty) -> Row:
    return {
        "where": str(party.where),
        "identity": party.identity,
        "number": party.number,
        "labels": party.name,
    }
