"""``k8sdatapath l7``: requests that a node holds to policies."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from k8sdatapath.cli.observe import SETTINGS, show_flows
from k8sdatapath.cli.output import Output, OutputOption, show
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.errors import ContractError
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.l7_view import L7View

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Look at requests, and questions to name servers, that are held to policies."
)


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
def rules(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List the rules that requests are held to, with what asks for them."""
    from k8sdatapath.datapath.policy_view import PolicyView

    asking: dict[int, set[str]] = defaultdict(set)
    with suppress(ContractError), PolicyView.bind(PinDir(pins)) as policies:
        for rule in policies.rules():
            asking[rule.requests].add(rule.name)
    with pinned(pins) as view:
        found = [
            {
                "set": each.rules,
                "number": each.number,
                "rule": each.rule,
                "for": "; ".join([*map(str, each.ports), *sorted(asking[each.rules])]),
                "only seen": "; ".join(each.observed),
                "connections": each.connections,
            }
            for each in view.rules()
        ]
    show(found, output)


@app.command()
def names(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List the names that name servers may be asked for, with what allows it."""
    from k8sdatapath.datapath.names_view import NamesView
    from k8sdatapath.datapath.policy_view import PolicyView

    with NamesView.bind(PinDir(pins)) as view, PolicyView.bind(PinDir(pins)) as policies:
        asking: dict[int, set[str]] = defaultdict(set)
        for rule in policies.rules():
            asking[rule.names].add(rule.name)
        found = [
            {"set": each.set, "name": each.name, "for": "; ".join(sorted(asking[each.set]))}
            for each in view.names()
            if each.set in asking
        ]
    show(found, output)


@app.command(context_settings=SETTINGS)
def events(context: typer.Context) -> None:
    """Show what becomes of requests and of questions to name servers: observe --type l7, with its flags."""
    show_flows(["--type", "l7", *context.args])


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
