"""``k8sdatapath identity``: the identities that a node knows."""

from __future__ import annotations

from collections import Counter

import typer

from k8sdatapath.cli.output import Output, OutputOption, show
from k8sdatapath.cli.policy import pinned
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption

__all__ = ["app"]

app = typer.Typer(help="Look at the identities that a node knows.")


@app.callback()
def options() -> None:
    """Look at the identities that a node knows."""


@app.command("list")
def list_(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List who is known, by identity: addresses, what restricts its pods of this node, and labels."""
    with pinned(pins) as view:
        parties, pods = view.parties(), view.pods()
    addresses = Counter(each.identity for each in parties)
    labels = {each.identity: each.name.partition("; in ")[0] for each in parties}
    labels |= {each.identity: each.name.partition("; in ")[0] for each in pods if each.name}
    here = {each.identity: each for each in pods}
    rows = [
        {
            "identity": identity,
            "addresses": addresses[identity],
            "addresses_here": len(here[identity].addresses) if identity in here else 0,
            "restricted": sorted(way.name.lower() for way in here[identity].restricted)
            if identity in here
            else [],
            "rules": here[identity].rules if identity in here else 0,
            "labels": labels.get(identity, ""),
        }
        for identity in sorted({*addresses, *here})
    ]
    show(rows, output)
