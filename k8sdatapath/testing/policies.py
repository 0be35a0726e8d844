"""Who reaches whom by the policies in some files, as assertions and as a table."""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from attrs import evolve, frozen

from k8sdatapath.datapath.policy_compiler import networks_of
from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.errors import ModelError
from k8sdatapath.kube.policy import policies_of, read_manifests
from k8sdatapath.kube.policy.objects import Manifest, host_network_of, namespaces_of, workloads_of
from k8sdatapath.model import IPAddress, Protocol, network
from k8sdatapath.model.host_firewall import for_nodes
from k8sdatapath.model.policy import Block, Policy, within
from k8sdatapath.model.workload import Workload

__all__ = ["Matrix", "PolicyWorld", "manifests_of", "passed_over", "placed"]

_SUFFIXES = (".yaml", ".yml", ".json")


class PolicyWorld(PolicySet):
    """The policies and pods of some manifests::

        def test_payments():
            world = PolicyWorld.read("manifests/")
            world.assert_allowed("frontend/checkout", "payments/api", 8080)
            world.assert_denied("frontend/checkout", "payments/api", 8080, request="GET /charge")

    Of a Deployment, or of what else makes pods, there is one pod by its name. A DNS name that policies have
    may be asked for as it is; for its addresses to be it, tell ``names={"bank.example": ["192.0.2.7"]}``.
    Where policies are for nodes, these are asked as well, as with a host firewall that leaves the usual ports
    open.

    :ivar namespaces: their labels, by name, as far as the manifests have them.
    :ivar host_network: names of pods that are in the network of their node: to policies they are that node.
    """

    host_network: frozenset[str] = frozenset()
    namespaces: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    @classmethod
    def read(
        cls,
        *paths: str | os.PathLike[str],
        names: Mapping[str, Iterable[Any]] = {},
        recursive: bool = False,
        pod_networks: Iterable[Any] = (),
    ) -> Self:
        """All that is in some files, and in the manifests of some directories.

        :param recursive: and of those in them, as ``kubectl apply -R``.
        :param pod_networks: where pods without an address are going to have one, one network of a family.
        :raises ManifestError: a policy that says what cannot be, or cannot be enforced.
        :raises OSError: a file cannot be read.
        """
        found = manifests_of(paths, recursive=recursive)
        policies = policies_of(found, names=True, nodes=True)
        workloads = placed(workloads_of(found), policies, pod_networks)
        world = cls(policies, workloads, names=names, host_firewall=for_nodes(policies))
        world.namespaces = namespaces_of(found)
        world.host_network = frozenset(host_network_of(found))
        return world

    def pod(self, name: str, labels: Mapping[str, str] = {}, **more: Any) -> Workload:
        """A pod that is in no manifest, to ask for; its namespace's labels are those that the manifests say.

        :param name: ``"shop/web"``.
        :param more: as for :meth:`Workload.pod`.
        """
        around = self.namespaces.get(name.partition("/")[0], {})
        more = {"namespace_labels": around, "service_account": "default", **more}
        return Workload.pod(name, labels, **more)

    def node(self, name: str, labels: Mapping[str, str] = {}, **more: Any) -> Workload:
        """A node that is in no manifest, to ask for.

        :param more: as for :meth:`Workload.node`.
        """
        return Workload.node(name, labels, **more)

    @property
    def unplaced(self) -> tuple[str, ...]:
        """The pods without an address, where policies go by networks: what these say is not about them."""
        rules = [rule for policy in self.policies.values() for rule in policy.rules]
        if not any(isinstance(peer, Block) and peer.pods for rule in rules for peer in rule.peers):
            return ()
        there = self.workloads.values()
        return tuple(sorted(each.name for each in there if each.is_pod and not each.addresses))

    def assert_allowed(
        self,
        source: Workload | str | IPAddress,
        destination: Workload | str | IPAddress,
        port: int,
        protocol: Protocol | str | int = Protocol.TCP,
        *,
        request: str = "",
    ) -> None:
        """That a connection is allowed.

        :param request: of HTTP, over it, too: ``"POST /charge"``, headers on lines of their own. Without one,
            a connection over which only some requests are allowed is allowed.
        :raises AssertionError: it is not; the message names the rule, or those that would nearly allow it.
        """
        why = self.why(source, destination, port, protocol, request=request)
        if not why:
            raise AssertionError(f"{_pair(source, destination, port, request)} is denied: {why}")

    def assert_denied(
        self,
        source: Workload | str | IPAddress,
        destination: Workload | str | IPAddress,
        port: int,
        protocol: Protocol | str | int = Protocol.TCP,
        *,
        request: str = "",
    ) -> None:
        """That a connection is not allowed.

        :param request: or this one, of HTTP, over it is not.
        :raises AssertionError: it is; the message names the rule.
        """
        verdict = self.verdict(source, destination, port, protocol, request=request)
        if verdict:
            raise AssertionError(f"{_pair(source, destination, port, request)} is allowed: {verdict}")

    def matrix(
        self,
        port: int,
        protocol: Protocol | str | int = Protocol.TCP,
        *others: Workload | str | IPAddress,
        request: str = "",
    ) -> Matrix:
        """Who reaches whom at a port: a table whose text is stable, for snapshots.

        :param others: who else is asked for, such as ``"world"`` or an address.
        :param request: of HTTP, that is made of everybody.
        """
        asked = {_called(each): each for each in (*sorted(self.workloads), *others)}
        reached: dict[str, set[str]] = {name: set() for name in asked}
        some: dict[str, set[str]] = {name: set() for name in asked}
        for one, other in itertools.product(asked, asked):
            verdict = self.verdict(asked[one], asked[other], port, protocol, request=request)
            if verdict:
                reached[one].add(other)
                if not request and any(each.l7 for each in verdict.decisions):
                    some[one].add(other)
        frozen = ({one: frozenset(others) for one, others in each.items()} for each in (reached, some))
        return Matrix(tuple(asked), *frozen)


@frozen
class Matrix:
    """Whom each of some reaches.

    :ivar reached: by name of the source.
    :ivar some: those of them that are reached by some requests only.
    """

    names: tuple[str, ...]
    reached: Mapping[str, frozenset[str]]
    some: Mapping[str, frozenset[str]]

    def __str__(self) -> str:
        width = max(map(len, self.names), default=0)
        lines = [f"{name:<{width}}  {' '.join(self._row(name))}" for name in self.names]
        heads = [f"{'':<{width}}  {' '.join(str(at % 10) for at in range(len(self.names)))}"]
        return "\n".join(heads + [f"{line}  {at}" for at, line in enumerate(lines)])

    def _row(self, name: str) -> Iterator[str]:
        for other in self.names:
            yield "o" if other in self.some[name] else "X" if other in self.reached[name] else "."

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.names)
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{each}</td>' for each in self._row(name))}</tr>"
            for name in self.names
        )
        return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def manifests_of(paths: Iterable[str | os.PathLike[str]], *, recursive: bool = False) -> list[Manifest]:
    """All objects in some files, and in the manifests of some directories.

    :param recursive: and of those in them.
    """
    return read_manifests(*(each for path in paths for each in _files(Path(path), recursive)))


def passed_over(paths: Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """Directories with manifests in some directories, which are not read unless ``recursive``."""
    there = [path for path in map(Path, paths) if path.is_dir()]
    inside = {each.parent for path in there for each in _below(path)}
    return tuple(sorted(inside - {*there}))


def placed(
    workloads: Iterable[Workload], policies: Iterable[Policy], networks: Iterable[Any]
) -> Iterator[Workload]:
    """Workloads, of which pods without an address have one in each of some networks.

    :raises ModelError: policies tell parts of such a network apart, so that it is not said what these say.
    """
    known = [network(each) for each in networks]
    apart = {each for policy in policies for each in networks_of(policy)}
    for one in known:
        if parts := sorted(str(each) for each in apart if each != one and within(each, one)):
            raise ModelError(f"policies tell parts of {one} apart, such as {parts[0]}: give pods addresses")
    there = list(workloads)
    taken = {ip for each in there for ip in each.addresses}
    free = [(ip for ip in one.hosts() if ip not in taken) for one in known]
    for each in there:
        if each.is_pod and not each.addresses:
            found = [next(ips, None) for ips in free]
            if None in found:
                raise ModelError(f"there is no room for {each.name} in {known[found.index(None)]}")
            each = evolve(each, addresses=found)
        yield each


def _pair(source: Any, destination: Any, port: int, request: str) -> str:
    asked = f" {request.splitlines()[0]}" if request else ""
    return f"{_called(source)} -> {_called(destination)}:{port}{asked}"


def _called(side: Any) -> str:
    return side.name if isinstance(side, Workload) else str(side)


def _files(path: Path, recursive: bool) -> list[Path]:
    if not path.is_dir():
        return [path]

    def unreadable(error: OSError) -> None:
        if recursive or Path(error.filename) == path:  # a policy in there would be missed
            raise error

    found = sorted(each for each in _below(path, unreadable) if recursive or each.parent == path)
    if not found:
        below = " but in directories there: read these too (-R)" if any(_below(path)) else ""
        raise ModelError(f"{path}: no manifests are there{below}")
    return found


def _below(path: Path, unreadable: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """The manifests in a directory, and in those below it that are not hidden.

    :param unreadable: is told of directories that cannot be read.
    """
    for folder, inside, files in os.walk(path, onerror=unreadable):
        inside[:] = [each for each in inside if not each.startswith(".")]
        yield from (Path(folder, each) for each in files if each.endswith(_SUFFIXES) and each[0] != ".")
