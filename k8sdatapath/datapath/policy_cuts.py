"""Which connections a change of policies would end, of those that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from attrs import frozen

from k8sdatapath.datapath.policy_set import Decision, PolicySet
from k8sdatapath.datapath.talks import Talk
from k8sdatapath.model import IPAddress
from k8sdatapath.model.frontend import place
from k8sdatapath.model.policy import PortMatch, Toward
from k8sdatapath.model.workload import Workload

__all__ = ["CutConnection", "cut_connections"]


@frozen
class CutConnection:
    """A connection that is there, and that a change ends.

    :ivar source: who has begun it; empty: an address that nobody is known to have. Likewise ``destination``.
    :ivar port: of the destination, after any translation of a service; of ICMP the type.
    :ivar protocol: of IP, by number.
    :ivar why: what denies it then.
    """

    source: str
    source_address: IPAddress
    source_port: int
    destination: str
    destination_address: IPAddress
    port: int
    protocol: int
    why: str

    def __str__(self) -> str:
        one = _end(self.source, f"{place(self.source_address, self.source_port)}")
        other = _end(self.destination, str(self.destination_address))
        return f"{one} -> {other} at {PortMatch(self.protocol, self.port, self.port)}: {self.why}"


def cut_connections(
    talks: Iterable[Talk],
    before: PolicySet,
    after: PolicySet,
    whose: Callable[[IPAddress], Workload | None],
    here: Callable[[Workload, Toward], int | None],
) -> Iterator[CutConnection]:
    """The talks that go on, and would not by other policies, as the ends judge that are of this node.

    :param whose: who has an address; None: nobody who is known.
    :param here: the revision of a pod's policy, which is that of talks that have felt it; None: the pod is of
        another node, and judges there.
    """
    judged: dict[tuple[object, ...], tuple[list[Decision], list[Decision]]] = {}
    for talk in talks:
        if talk.closing:
            continue
        source = whose(talk.source) or talk.source
        destination = whose(talk.destination) or talk.destination
        ends = {Toward.EGRESS: source, Toward.INGRESS: destination}
        revisions = {
            toward: revision
            for toward, end in ends.items()
            if isinstance(end, Workload) and (revision := here(end, toward)) is not None
        }
        if len(revisions) > 1:  # a node's policies are not for what is between it and its own pods
            revisions = {toward: each for toward, each in revisions.items() if not _is_node(ends[toward])}
        names = (each.name if isinstance(each, Workload) else each for each in ends.values())
        key = *names, talk.port, talk.protocol, talk.source.version
        if key not in judged:
            asked = source, destination, talk.port, talk.protocol
            verdicts = (each.verdict(*asked, version=talk.source.version) for each in (before, after))
            was, now = ([each for each in said.decisions if each.toward in revisions] for said in verdicts)
            judged[key] = was, now
        was, now = judged[key]
        kept = all(talk.revisions[toward] == revision for toward, revision in revisions.items())
        denying = [each for each in now if not each.allowed]
        if denying and (kept or all(each.allowed for each in was)):
            yield CutConnection(
                _called(source),
                talk.source,
                talk.source_port,
                _called(destination),
                talk.destination,
                talk.port,
                talk.protocol,
                "; ".join(map(str, denying)),
            )


def _is_node(end: Workload | IPAddress) -> bool:
    return isinstance(end, Workload) and end.is_node


def _called(end: Workload | IPAddress) -> str:
    return end.name if isinstance(end, Workload) else ""


def _end(name: str, where: str) -> str:
    return f"{name} ({where})" if name else where
