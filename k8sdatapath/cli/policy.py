"""``k8sdatapath policy``: what the policies in manifests say, without a cluster, and what a node enforces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k8sdatapath.cli.output import Output, OutputOption, Row, console, show
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
def check(files: Files, output: OutputOption = Output.TABLE) -> None:
    """Read policies, and say what they are for. The first that cannot be enforced ends it, by its field."""
    from k8sdatapath.kube.policy import policies_of
    from k8sdatapath.testing.policies import manifests_of

    found = policies_of(manifests_of(files), names=True)
    looking_on = any(each.audit for each in found)
    rows: list[Row] = [
        {
            "policy": each.name,
            "tier": each.tier.name.lower(),
            "isolates": ", ".join(sorted(toward.name.lower() for toward in each.isolates)) or "nothing",
            "rules": len(each.rules),
            **({"audit": each.audit} if looking_on else {}),
            "for": str(each.subject),
        }
        for each in found
    ]
    show(rows, output)


@app.command()
def why(
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
    said = world.why(one, other, port, protocol, request="\n".join([request, *(header or ())]))

    def rows() -> Iterator[Row]:
        for each in said.verdict.decisions:
            word = "audit" if each.audited else "allowed" if each.allowed else "denied"
            yield {"side": each.toward.name.lower(), "verdict": word, "why": str(each)}
        for miss in said.nearest:
            yield {"side": "", "verdict": "not by", "why": str(miss)}

    show(list(rows()), output)
    if not said:
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


@app.command()
def lint(files: Files, name: NamesOption = None, output: OutputOption = Output.TABLE) -> None:
    """Find rules that do nothing: that match nobody, that others hide, or that change nothing.

    It is judged by the pods in the manifests. Exits with 1 if there are any.
    """
    from k8sdatapath.datapath.policy_lint import lint as find
    from k8sdatapath.kube.policy import policies_of
    from k8sdatapath.kube.policy.objects import workloads_of
    from k8sdatapath.testing.policies import manifests_of

    there = manifests_of(files)
    told = _told(name)
    found = find(policies_of(there, names=bool(told)), workloads_of(there), names=told)
    show([{"rule": str(each.cause), "is": str(each.kind), "because": each.reason} for each in found], output)
    if found:
        raise typer.Exit(1)


@app.command()
def plan(
    files: FilesOption,
    instead_of: Annotated[
        list[Path] | None,
        typer.Option("--instead-of", metavar="FILE", help="What is in force; else nothing is."),
    ] = None,
    flows: Annotated[
        Path | None,
        typer.Option("--flows", metavar="FILE", help="Flows as `hubble observe -o json` has them."),
    ] = None,
    name: NamesOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell what policies would open and cut, put in force instead of others, and how many entries they need.

    With --flows: which of the flows that were recorded would be judged otherwise.
    """
    from k8sdatapath.datapath.policy_plan import plan_policies
    from k8sdatapath.kube.policy import policies_of
    from k8sdatapath.kube.policy.objects import workloads_of
    from k8sdatapath.testing.flows import recorded_flows, what_if
    from k8sdatapath.testing.policies import manifests_of

    told = _told(name)
    new, old = manifests_of(files), manifests_of(instead_of or ())
    before, after = (policies_of(each, names=bool(told)) for each in (old, new))
    pods = {each.name: each for manifests in (old, new) for each in workloads_of(manifests)}
    if flows is not None:
        rows: list[Row] = [
            {
                "flows": each.flows,
                "from": each.source,
                "to": each.destination,
                "ports": each.ports,
                "then": "allowed" if each.allowed else "denied",
                "because": each.why,
            }
            for each in what_if(before, after, recorded_flows(flows), names=told)
        ]
        show(rows, output)
        return
    found = plan_policies(before, after, pods.values(), names=told)
    rows = [
        {
            "from": list(each.source),
            "to": list(each.destination),
            "ports": each.ports,
            "then": "audit" if each.audited else "allowed" if each.allowed else "denied",
            "because": each.why,
        }
        for each in found.flips
    ]
    show(rows, output)
    if output is Output.TABLE:
        console().print(f"{found.entries[0]} entries before, {found.entries[1]} after")


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
    if rule.allowed:
        return "allow"
    return "audit" if rule.audited else "deny"


def _ports(rule: LiveRule) -> str:
    from k8sdatapath.model.policy import PortMatch

    return str(PortMatch(rule.protocol or None, rule.first, rule.last))


def _world(files: list[Path], names: list[str] | None) -> PolicyWorld:
    from k8sdatapath.testing import PolicyWorld

    return PolicyWorld.read(*files, names=_told(names))


def _told(names: list[str] | None) -> dict[str, list[str]]:
    """The addresses of names."""
    told: dict[str, list[str]] = {}
    for each in names or ():
        name, equals, address = each.partition("=")
        if not equals:
            raise ModelError(f"{each!r}: write NAME=ADDRESS")
        told.setdefault(name, []).append(address)
    return told


def _side(world: PolicyWorld, text: str) -> Workload | str:
    """A pod that no manifest has is made of its labels."""
    from k8sdatapath.model.workload import Workload

    name, _, labels = text.partition(":")
    if name in world.workloads or "/" not in name:
        return text
    pairs = dict(each.partition("=")[::2] for each in labels.split(",") if each)
    return Workload.pod(name, pairs)
