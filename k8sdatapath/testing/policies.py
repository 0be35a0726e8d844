"""Who reaches whom by the policies in some files, as assertions and as a table."""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from attrs import frozen

from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.errors import ModelError
from k8sdatapath.kube.policy import policies_of, read_manifests
from k8sdatapath.kube.policy.objects import Manifest, workloads_of
from k8sdatapath.model import IPAddress, Protocol
from k8sdatapath.model.workload import Workload

__all__ = ["Matrix", "PolicyWorld", "manifests_of"]

_SUFFIXES = (".yaml", ".yml", ".json")


class PolicyWorld(PolicySet):
    """The policies and pods of some manifests::

        def test_payments():
            world = PolicyWorld.read("manifests/")
            world.assert_allowed("frontend/checkout", "payments/api", 8080)
            world.assert_denied("frontend/checkout", "payments/api", 8080, request="GET /charge")

    Of a Deployment, or of what else makes pods, there is one pod by its name. Names of DNS need addresses for
    policies by name to mean anything: ``names={"bank.example": ["192.0.2.7"]}``.
    """

    @classmethod
    def read(cls, *paths: str | os.PathLike[str], names: Mapping[str, Iterable[Any]] = {}) -> Self:
        """All that is in some files, and in the manifests of some directories.

        :raises ManifestError: a policy that says what cannot be, or cannot be enforced.
        :raises OSError: a file cannot be read.
        """
        found = manifests_of(paths)
        return cls(policies_of(found, names=bool(names)), workloads_of(found), names=names)

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

        :param others: who else is asked for, such as an address of the world.
        :param request: of HTTP, that is made of everybody.
        """
        names = [*sorted(self.workloads), *others]
        reached: dict[str, set[str]] = {str(each): set() for each in names}
        some: dict[str, set[str]] = {str(each): set() for each in names}
        for one, other in itertools.product(names, names):
            verdict = self.verdict(one, other, port, protocol, request=request)
            if verdict:
                reached[str(one)].add(str(other))
                if not request and any(each.l7 for each in verdict.decisions):
                    some[str(one)].add(str(other))
        frozen = ({one: frozenset(others) for one, others in each.items()} for each in (reached, some))
        return Matrix(tuple(map(str, names)), *frozen)


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


def manifests_of(paths: Iterable[str | os.PathLike[str]]) -> list[Manifest]:
    """All objects in some files, and in the manifests of some directories."""
    return read_manifests(*(each for path in paths for each in _files(Path(path))))


def _pair(source: Any, destination: Any, port: int, request: str) -> str:
    one, other = (each.name if isinstance(each, Workload) else each for each in (source, destination))
    return f"{one} -> {other}:{port}" + (f" {request.splitlines()[0]}" if request else "")


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(
        each for each in path.iterdir() if each.suffix in _SUFFIXES and not each.name.startswith(".")
    )
    if not found:
        raise ModelError(f"{path}: no manifests are there")
    return found
