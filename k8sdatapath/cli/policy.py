"""``k8sdatapath policy``: what the policies in manifests say, without a cluster, and what a node enforces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k8sdatapath.cli.output import Output, OutputOption, Row, show
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.errors import ModelError
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.policy_view import LiveRule, PolicyView
    from k8sdatapath.model.workload import Workload
    from k8sdatapath.testing import PolicyWorld

__all__ = ["app", "pinned"]

app = typer.Typer(no_args_is_help=True, help="Try out network policies, and look at those in the kernel.")

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Manifests, or directories of them.")]
FilesOption = Annotated[
    list[Path], typer.Option("--file", "-f", metavar="FILE", help="Manifests, or a directory of them.")
]
_SIDE = "NAMESPACE/NAME of a pod, with its labels if it is in no manifest (shop/web:app=web), or an address."
PortOption = Annotated[int, typer.Option("--port", "-p", help="Of the destination; of ICMP the type.")]
ProtocolOption = Annotated[str, typer.Option("--protocol", help="TCP, UDP, SCTP, ICMP or ICMPv6.")]
NamesOption = Annotated[
    list[str] | None, typer.Option("--name", metavar="NAME=ADDRESS", help="What a DNS name stands for.")
]
RequestOption = Annotated[
    str,
    typer.Option("--request", metavar="'METHOD PATH'", help="Of HTTP, over the connection: 'GET /charge'."),
]
HeaderOption = Annotated[
    list[str] | None, typer.Option("--header", metavar="'NAME: VALUE'", help="Of the request.")
]


@app.command()
def verify(files: Files, output: OutputOption = Output.TABLE) -> None:
    """Read policies, and say what they are for. The first that cannot be enforced ends it, by its field."""
    from k8sdatapath.kube.policy import policies_of
    from k8sdatapath.testing.policies import manifests_of

    rows: list[Row] = [
        {
            "policy": each.name,
            "tier": each.tier.name.lower(),
            "isolates": ", ".join(sorted(toward.name.lower() for toward in each.isolates)) or "nothing",
            "rules": len(each.rules),
            "for": str(each.subject),
        }
        for each in policies_of(manifests_of(files), names=True)
    ]
    show(rows, output)


@app.command()
def verdict(
    files: FilesOption,
    source: Annotated[str, typer.Option("--from", metavar="POD", help=_SIDE)],
    destination: Annotated[str, typer.Option("--to", metavar="POD", help=_SIDE)],
    port: PortOption,
    protocol: ProtocolOption = "TCP",
    request: RequestOption = "",
    header: HeaderOption = None,
    name: NamesOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Whether a connection is allowed, by which rule, and if it is denied, which rules nearly allow it.

    Exits with 1 if it is denied.
    """
    world = _world(files, name)
    one, other = (_side(world, text) for text in (source, destination))
    why = world.why(one, other, port, protocol, request="\n".join([request, *(header or ())]))

    def rows() -> Iterator[Row]:
        for each in why.verdict.decisions:
            word = "allowed" if each.allowed else "denied"
            yield {"side": each.toward.name.lower(), "verdict": word, "why": str(each)}
        for miss in why.nearest:
            yield {"side": "", "verdict": "not by", "why": str(miss)}

    show(list(rows()), output)
    if not why:
        raise typer.Exit(1)


@app.command()
def matrix(
    files: FilesOption,
    port: PortOption,
    protocol: ProtocolOption = "TCP",
    request: RequestOption = "",
    header: HeaderOption = None,
    name: NamesOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Who reaches whom, of the pods in the manifests."""
    found = _world(files, name).matrix(port, protocol, request="\n".join([request, *(header or ())]))
    rows: list[Row] = []
    for each in found.names:
        some = found.some[each]
        row: Row = {"from": each, "reaches": sorted(found.reached[each] - {each} - some)}
        rows.append({**row, "by some requests": sorted(some)} if any(found.some.values()) else row)
    show(rows, output)


def pinned(directory: Path) -> PolicyView:
    """The policies whose maps are pinned in a directory."""
    from k8sdatapath.datapath.policy_view import PolicyView

    return PolicyView.bind(PinDir(directory))


@app.command("list")
def list_(pins: PinsOption = DEFAULT_PINS, output: OutputOption = Output.TABLE) -> None:
    """List what the policies of a node say, and for how many packets each rule was decisive."""
    found: dict[tuple[str, str, str], list[LiveRule]] = {}
    with pinned(pins) as view:
        for rule in view.rules():
            found.setdefault((_way(rule), _word(rule), rule.name), []).append(rule)
    rows: list[Row] = [
        {
            "direction": way,
            "verdict": word,
            "packets": rules[0].packets,
            "bytes": rules[0].bytes,
            "entries": len(rules),
            "rule": name,
        }
        for (way, word, name), rules in sorted(found.items())
    ]
    show(rows, output)


@app.command("get")
def get(
    pod: Annotated[str, typer.Argument(metavar="ADDRESS", help="Of a pod of this node.")],
    pins: PinsOption = DEFAULT_PINS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the rules of a pod as the kernel has them, the strongest first: who, which ports, and why."""
    with pinned(pins) as view:
        rows: list[Row] = [
            {
                "direction": _way(rule),
                "verdict": _word(rule),
                "peer": rule.peer,
                "ports": _ports(rule),
                "packets": rule.packets,
                "bytes": rule.bytes,
                "rule": rule.name,
                "peer_labels": rule.peer_name,
            }
            for rule in view.rules(pod)
        ]
    show(rows, output)


def _way(rule: LiveRule) -> str:
    return rule.toward.name.lower()


def _word(rule: LiveRule) -> str:
    return "allow" if rule.allowed else "deny"


def _ports(rule: LiveRule) -> str:
    from k8sdatapath.model.policy import PortMatch

    return str(PortMatch(rule.protocol or None, rule.first, rule.last))


def _world(files: list[Path], names: list[str] | None) -> PolicyWorld:
    from k8sdatapath.testing import PolicyWorld

    told: dict[str, list[str]] = {}
    for each in names or ():
        name, equals, address = each.partition("=")
        if not equals:
            raise ModelError(f"{each!r}: write NAME=ADDRESS")
        told.setdefault(name, []).append(address)
    return PolicyWorld.read(*files, names=told)


def _side(world: PolicyWorld, text: str) -> Workload | str:
    """A pod that no manifest has is made of its labels."""
    from k8sdatapath.model.workload import Workload

    name, _, labels = text.partition(":")
    if name in world.workloads or "/" not in name:
        return text
    pairs = dict(each.partition("=")[::2] for each in labels.split(",") if each)
    return Workload.pod(name, pairs)
