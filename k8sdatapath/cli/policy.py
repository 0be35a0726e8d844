"""``k8sdatapath policy``: what the policies in manifests say, without a cluster, and what a node enforces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k8sdatapath.cli.output import Output, OutputOption, Row, console, show
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.errors import CapacityError, ModelError, near_misses
from k8sdatapath.model.address import network
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.policy_view import LiveRule, PolicyView
    from k8sdatapath.kube.policy.objects import Manifest
    from k8sdatapath.model.policy import Policy
    from k8sdatapath.model.workload import Workload
    from k8sdatapath.testing import PolicyWorld

__all__ = ["app", "pinned"]

app = typer.Typer(no_args_is_help=True, help="Try out network policies, and look at those in the kernel.")

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Manifests, or directories of them.")]
FilesOption = Annotated[
    list[Path], typer.Option("--file", "-f", metavar="FILE", help="Manifests, or a directory of them.")
]
_SIDE = (
    "NAMESPACE/NAME of a pod or NAME of a node, with labels if it is in no manifest (shop/new:app=web), "
    "an address, a network, or world, host, remote-node."
)
PortOption = Annotated[int, typer.Option("--port", "-p", help="Of the destination; of ICMP the type.")]
ProtocolOption = Annotated[str, typer.Option("--protocol", help="TCP, UDP, SCTP, ICMP or ICMPv6.")]
NamesOption = Annotated[
    list[str] | None, typer.Option("--name", metavar="NAME=ADDRESS", help="What a DNS name stands for.")
]
RecursiveOption = Annotated[
    bool, typer.Option("--recursive", "-R", help="Read the directories in directories, too.")
]
PodNetworkOption = Annotated[
    list[str] | None,
    typer.Option("--pod-network", metavar="CIDR", help="Where pods without an address will have one."),
]
RequestOption = Annotated[
    str,
    typer.Option("--request", metavar="'METHOD PATH'", help="Of HTTP: 'GET /charge'; of DNS: the name."),
]
HeaderOption = Annotated[
    list[str] | None, typer.Option("--header", metavar="'NAME: VALUE'", help="Of the request.")
]


@app.command()
def check(files: Files, recursive: RecursiveOption = False, output: OutputOption = Output.TABLE) -> None:
    """Read policies, and say what they are for, or which of them cannot be enforced, by their fields."""
    from k8sdatapath.kube.policy import checked

    found, wrong = checked(_read(files, recursive), names=True, nodes=True)
    problems = [*map(str, wrong), *_too_much(found)]
    for problem in problems:
        console(stderr=True).print(f"error: {problem}", style="red", markup=False)
    if problems:
        raise typer.Exit(1)
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


def _too_much(policies: Iterable[Policy]) -> Iterator[str]:
    """Which rules ask more of requests than a node's tables can hold, each for itself."""
    from k8sdatapath.datapath.http_tables import http_tables
    from k8sdatapath.model.http_rules import HTTPRule

    for policy in policies:
        for each in policy.rules:
            try:
                http_tables(rule for rule in each.l7 if isinstance(rule, HTTPRule))
            except CapacityError as error:
                yield f"{policy.where}: {each.name}: {error}"


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
    recursive: RecursiveOption = False,
    pod_network: PodNetworkOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Whether a connection is allowed, by which rule, and if it is denied, which rules nearly allow it.

    Exits with 1 if it is denied.
    """
    world = _world(files, name, recursive, pod_network)
    one, other = (_side(world, text) for text in (source, destination))
    _note_unknown(world, one, other)
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
    also: Annotated[
        list[str] | None, typer.Option("--also", metavar="PEER", help="Somebody else: " + _SIDE)
    ] = None,
    name: NamesOption = None,
    recursive: RecursiveOption = False,
    pod_network: PodNetworkOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Who reaches whom, of the pods and nodes in the manifests."""
    world = _world(files, name, recursive, pod_network)
    others = [_side(world, each) for each in also or ()]
    _note_unknown(world)
    found = world.matrix(port, protocol, *others, request="\n".join([request, *(header or ())]))
    rows: list[Row] = []
    for each in found.names:
        some = found.some[each]
        row: Row = {"from": each, "reaches": sorted(found.reached[each] - {each} - some)}
        rows.append({**row, "by some requests": sorted(some)} if any(found.some.values()) else row)
    show(rows, output)


@app.command()
def lint(
    files: Files,
    name: NamesOption = None,
    recursive: RecursiveOption = False,
    pod_network: PodNetworkOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Find rules that do nothing: that match nobody, that others hide, or that change nothing.

    It is judged by the pods and nodes in the manifests. Exits with 1 if there are any.
    """
    from k8sdatapath.datapath.policy_lint import lint as find
    from k8sdatapath.kube.policy import policies_of
    from k8sdatapath.kube.policy.objects import workloads_of
    from k8sdatapath.model.host_firewall import for_nodes
    from k8sdatapath.testing.policies import placed

    there = _read(files, recursive)
    told = _told(name)
    policies = policies_of(there, names=True, nodes=True)
    workloads = placed(workloads_of(there), policies, pod_network or ())
    found = find(policies, workloads, names=told, host_firewall=for_nodes(policies))
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
    recursive: RecursiveOption = False,
    pod_network: PodNetworkOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell what policies would open and cut, put in force instead of others, and how many entries they need.

    With --flows: which of the flows that were recorded would be judged otherwise.
    """
    from k8sdatapath.datapath.policy_plan import plan_policies
    from k8sdatapath.kube.policy import policies_of
    from k8sdatapath.kube.policy.objects import workloads_of
    from k8sdatapath.model.host_firewall import for_nodes
    from k8sdatapath.testing.flows import recorded_flows, what_if
    from k8sdatapath.testing.policies import placed

    told = _told(name)
    new, old = _read(files, recursive), _read(instead_of or [], recursive)
    before, after = (policies_of(each, names=True, nodes=True) for each in (old, new))
    firewall = for_nodes((*before, *after))
    pods = {each.name: each for manifests in (old, new) for each in workloads_of(manifests)}
    if flows is not None:
        recorded = list(recorded_flows(flows))
        known = pods.values()
        changed = what_if(before, after, recorded, workloads=known, names=told, host_firewall=firewall)
        requested = any(each.request for each in changed)
        rows: list[Row] = [
            {
                "flows": each.flows,
                "from": each.source,
                "to": each.destination,
                "ports": each.ports,
                **({"request": ", ".join(each.request.splitlines())} if requested else {}),
                "then": "allowed" if each.allowed else "denied",
                "because": each.why,
            }
            for each in changed
        ]
        show(rows, output)
        if unlabelled := sum(each.unlabelled for each in recorded):
            many = f"{unlabelled} of {len(recorded)} flows"
            _note("no labels at an end, which is taken for an address of the world", [many])
        return
    there = placed(pods.values(), (*before, *after), pod_network or ())
    found = plan_policies(before, after, there, names=told, host_firewall=firewall)
    asking = any(each.requests for each in found.flips)
    rows = [
        {
            "from": list(each.source),
            "to": list(each.destination),
            "ports": each.ports,
            **({"requests": each.asked} if asking else {}),
            "then": "audit" if each.audited else "allowed" if each.allowed else "denied",
            "because": each.why,
        }
        for each in found.flips
    ]
    show(rows, output)
    if output is Output.TABLE:
        console().print(found.cost, markup=False)


def pinned(directory: Path) -> PolicyView:
    """The policies whose maps are pinned in a directory."""
    from k8sdatapath.datapath.policy_view import PolicyView

    return PolicyView.bind(PinDir(directory))


@app.command("list")
def list_(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Manifests, instead of a node's policies."),
    ] = None,
    recursive: RecursiveOption = False,
    pins: PinsOption = DEFAULT_PINS,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what the policies of a node say, and for how many packets each rule was decisive.

    With manifests: what the rules of their policies say.
    """
    if files:
        show(list(_rules(_read(files, recursive), output)), output)
        return
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


def _rules(manifests: list[Manifest], output: Output) -> Iterator[Row]:
    """Those of manifests, in the order in which they are written."""
    from k8sdatapath.kube.policy import policies_of

    def either(parts: Iterable[object]) -> object:
        texts = list(map(str, parts))
        return texts if output is not Output.TABLE else " or ".join(texts) or "none"

    policies = policies_of(manifests, names=True, nodes=True)
    asking = any(rule.l7 for policy in policies for rule in policy.rules)
    for policy in policies:
        for rule in policy.rules:
            yield {
                "direction": rule.toward.name.lower(),
                "verdict": rule.action.name.lower(),
                "rule": f"{policy.name} {rule.name}",
                "for": str(policy.subject),
                "peers": either(rule.peers),
                "ports": either(rule.ports),
                **({"requests": either(rule.l7)} if asking else {}),
            }


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


def _read(files: list[Path], recursive: bool) -> list[Manifest]:
    from k8sdatapath.testing.policies import manifests_of

    _note_others(files, recursive)
    return manifests_of(files, recursive=recursive)


def _note_others(files: list[Path], recursive: bool) -> None:
    """Tell of directories that are not read: a policy in there would be missed."""
    from k8sdatapath.testing.policies import passed_over

    if not recursive and (others := passed_over(files)):
        _note("not read without -R", list(map(str, others)))


def _note(what: str, of: Sequence[str]) -> None:
    console(stderr=True).print(f"note: {what}: {', '.join(of[:5])}{' ...' if of[5:] else ''}", markup=False)


def _world(
    files: list[Path], names: list[str] | None, recursive: bool, pod_networks: list[str] | None
) -> PolicyWorld:
    from k8sdatapath.testing import PolicyWorld

    _note_others(files, recursive)
    told = _told(names)
    return PolicyWorld.read(*files, names=told, recursive=recursive, pod_networks=pod_networks or ())


def _note_unknown(world: PolicyWorld, *sides: Workload | str) -> None:
    """Tell of what has no address though policies go by it, as far as these, or else all, are concerned."""
    asked = {each if isinstance(each, str) else each.name for each in sides}
    if unplaced := [each for each in world.unplaced if each in asked or not sides]:
        _note("no address, so in none of the networks that policies name (--pod-network)", unplaced)
    if world.unnamed and (not sides or any(_is_place(each) for each in asked)):
        _note("no address, so rules by them match none (--name, or ask for the name itself)", world.unnamed)


def _told(names: list[str] | None) -> dict[str, list[str]]:
    """The addresses of names."""
    told: dict[str, list[str]] = {}
    for each in names or ():
        name, equals, address = each.partition("=")
        if not equals:
            raise ModelError(f"{each!r}: write NAME=ADDRESS")
        told.setdefault(name, []).append(address)
    return told


def _is_place(text: str) -> bool:
    try:
        network(text)
    except ModelError:
        return False
    return True


def _side(world: PolicyWorld, text: str) -> Workload | str:
    """A pod or a node that no manifest has is made of its labels."""
    name, colon, labels = text.partition(":")
    if text in world.workloads or not (colon or "/" in text) or _is_place(text):
        return text
    if name in world.workloads:
        raise ModelError(f"{name!r} is in the manifests, with its labels: leave out {colon + labels!r}")
    if name in world.host_network:
        raise ModelError(f"{name!r} is in the network of its node: ask for that, or for remote-node")
    if not colon:
        near = get_close_matches(name, world.workloads)
        hint = f"; {near_misses(name, near)}" if near else ""
        raise ModelError(f"{name!r} is in no manifest: to ask for a pod like it, write {name}:app=web{hint}")
    pairs = dict(each.partition("=")[::2] for each in labels.split(",") if each)
    return world.pod(name, pairs) if "/" in name else world.node(name, pairs)
