"""What becomes of a packet, and why: a value to be read, printed and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import Any

from attrs import frozen

from k8sdatapath.datapath.flow import Peer
from k8sdatapath.datapath.judgement import Judgement
from k8sdatapath.datapath.place import Place
from k8sdatapath.model import FrontendKind, Protocol, Scope, Selection
from k8sdatapath.net.packet import Packet
from k8sdatapath.tables.conntrack import FlowFlags, Tuple
from k8sdatapath.tables.counters import Outcome
from k8sdatapath.tables.trace import Left, StepKind, TracedRow

__all__ = ["Explanation", "Place", "Step", "told"]

_TCP_FLAGS = "FSRPAUEC"
#: ``BPF_FIB_LKUP_RET_*``.
_ROUTES = {
    0: "leads out of device {device}",
    1: "is a black hole",
    2: "is unreachable",
    3: "is prohibited",
    4: "ends at this node, or there is none: the node's stack decides",
    5: "is none: this node does not forward",
    6: "needs a tunnel, which is left to the node's stack",
    7: "leads out of device {device}, to a neighbour whose MAC is not known yet: the kernel asks for it",
    8: "has a smaller MTU",
}


@frozen
class Step:
    """One thing that a program found or did.

    :ivar name: of the step, for programs: ``frontend``, ``backend``, ``rewrite``, ...
    :ivar text: a sentence.
    :ivar src: of the tuple that it is about, if it is about one.
    :ivar dst: its other end.
    """

    name: str
    text: str
    src: Peer | None = None
    dst: Peer | None = None

    def __str__(self) -> str:
        return self.text


@frozen
class Explanation:
    """What becomes of a packet, and why.

    :ivar at: where it was met.
    :ivar steps: what the program found and did, in order.
    :ivar outcome: what it said at the end: the verdict or the reason to drop that is counted for traffic.
    :ivar packet: as it came; of a socket, its first one if it is not translated.
    :ivar answer: as the program left it; None if it was dropped.
    :ivar judgements: what policies said of it, of pods of this node.
    """

    at: Place
    steps: tuple[Step, ...]
    outcome: Outcome
    packet: Packet
    answer: Packet | None
    judgements: tuple[Judgement, ...] = ()

    @property
    def backend(self) -> Peer | None:
        """The backend that it goes to; None if it goes to none."""
        if self.outcome.drop or self.outcome.name.startswith("REJECT"):
            return None
        found = [step.dst for step in self.steps if step.name in ("backend", "rewrite")]
        return found[-1] if found else None

    def as_dict(self) -> dict[str, Any]:
        """As dicts, lists and texts, for JSON."""
        return {
            "at": str(self.at),
            "outcome": self.outcome.name,
            "meaning": self.outcome.meaning,
            "backend": None if self.backend is None else str(self.backend),
            "steps": [
                {
                    "step": step.name,
                    "text": step.text,
                    "src": None if step.src is None else str(step.src),
                    "dst": None if step.dst is None else str(step.dst),
                }
                for step in self.steps
            ],
            "policy": [each.as_dict() for each in self.judgements],
            "packet": repr(self.packet),
            "answer": None if self.answer is None else repr(self.answer),
        }

    def __str__(self) -> str:
        return "\n".join([*map(str, self.steps), f"{self.outcome.name}: {self.outcome.meaning}."])

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(step.text)}</li>" for step in self.steps)
        said = f"<b>{escape(self.outcome.name)}</b>: {escape(self.outcome.meaning)}."
        return f"<ol>{items}</ol><p>{said}</p>"


_LEFT = {
    Left.ODD: "It is no plain packet of TCP or UDP that may go on: the program behind it decides.",
    Left.ROUTE: "The way to there is not out of this device, or not known: the program behind it decides.",
    Left.FORWARDED: "The node forwards it, and pods leave under their own addresses: it goes as it is.",
    Left.DEVICE: "Pods leave this device under their own addresses: it goes as it is.",
    Left.NO_POD: "Its source is no pod of this node: it goes as it is.",
    Left.KNOWN: "Its destination knows pods by their own addresses: it goes as it is.",
    Left.KEEPS: "Its source keeps its own address: it goes as it is.",
    Left.ANSWER: "It answers who has dialled its source itself, or belongs to a service: it goes as it is.",
}
_CAME = {
    Place.POD: "comes from a pod of this node",
    Place.UPLINK: "comes from elsewhere",
    Place.XDP: "comes from elsewhere, to the driver",
    Place.TO_POD: "goes to a pod, from the node's stack",
}


def told(
    rows: Iterable[TracedRow],
    at: Place,
    outcomes: Mapping[int, Outcome],
    judged: Callable[[TracedRow], Judgement],
) -> Iterator[Step]:
    """The steps as sentences."""
    before: Tuple | None = None
    for row in rows:
        kind, ends = StepKind(row.step), row.tuple
        judging = kind is StepKind.POLICY
        text = str(judged(row)) if judging else _sentence(kind, row, before, at, outcomes)
        if text is not None:
            about = kind in _ABOUT
            src, dst = Peer(ends.src, ends.sport), Peer(ends.dst, ends.dport)
            yield Step(kind.name.lower(), text, src if about else None, dst if about else None)
        if kind in (StepKind.PACKET, StepKind.NAME):
            before = ends


_ABOUT = {
    StepKind.PACKET,
    StepKind.FLOW,
    StepKind.FRONTEND,
    StepKind.NO_FRONTEND,
    StepKind.BACKEND,
    StepKind.NAME,
    StepKind.REWRITE,
    StepKind.ICMP,
    StepKind.PEER,
    StepKind.POLICY,
}
_KINDS = {
    FrontendKind.CLUSTER_IP: "a cluster IP",
    FrontendKind.NODE_PORT: "a node port",
    FrontendKind.LOAD_BALANCER: "a load balancer's address",
    FrontendKind.EXTERNAL_IP: "an external IP",
    FrontendKind.HOST_PORT: "a host port",
}


def _sentence(
    kind: StepKind, row: TracedRow, before: Tuple | None, at: Place, outcomes: Mapping[int, Outcome]
) -> str | None:
    ends = row.tuple
    src, dst, protocol = Peer(ends.src, ends.sport), Peer(ends.dst, ends.dport), _protocol(ends.protocol)
    match kind:
        case StepKind.PACKET if at is Place.SOCKET:
            return f"A process dials {dst}/{protocol}."
        case StepKind.PACKET:
            flags = "".join(name for bit, name in enumerate(_TCP_FLAGS) if row.value >> bit & 1)
            leaves = "leaves an uplink, forwarded" if row.more else "leaves an uplink, from the node itself"
            what = f"{protocol} {flags}" if flags else protocol
            return f"A packet {_CAME.get(at, leaves)}: {what}, {src} -> {dst}."
        case StepKind.NO_FLOW:
            return "It belongs to no flow that is known."
        case StepKind.OVER:
            return "The flow that it belonged to is over: this begins another one."
        case StepKind.FLOW:
            which = "answers a flow" if row.value & FlowFlags.REPLY else "belongs to a flow"
            return f"It {which} that is known, whose entry says: {src} -> {dst}."
        case StepKind.NO_FRONTEND:
            return f"No service is dialled at {dst}/{protocol}."
        case StepKind.FRONTEND:
            chosen = Selection(row.value >> 8).name.lower().replace("_", " ")
            what = _KINDS[FrontendKind(row.value & 0xFF)]
            return f"{dst}/{protocol} is {what} of service number {row.more}, selection {chosen}."
        case StepKind.SOURCE:
            return f"The service's source ranges do not let {ends.src} in."
        case StepKind.SCOPE:
            local = row.value == Scope.LOCAL
            return f"Asked for: {'backends on this node only' if local else 'all backends'}."
        case StepKind.AFFINITY if row.value:
            return "Its client stays with the backend of its last flow."
        case StepKind.AFFINITY:
            return "Its client has no backend to stay with, and will with this one."
        case StepKind.SLOT:
            return f"Slot {row.value} of {row.more} is chosen."
        case StepKind.BACKEND:
            return f"The backend is {dst}."
        case StepKind.NAME if before is not None and before.src != ends.src:
            return f"It goes on under the name of {ends.src}, so that the answers come back here."
        case StepKind.HELD if row.value:
            return f"The answers to its port are another flow's: {outcomes[row.value].meaning}."
        case StepKind.HELD:
            return f"The answers to its port are another flow's: it gets port {ends.sport} on the wire."
        case StepKind.LEFT:
            return _LEFT[Left(row.value)]
        case StepKind.NEW_FLOW if row.value:
            return f"No flow can be made: {outcomes[row.value].meaning}."
        case StepKind.NEW_FLOW:
            return "A flow is made of it."
        case StepKind.REWRITE:
            return f"It becomes {src} -> {dst}."
        case StepKind.ICMP:
            return f"It is an error about a flow that is known: what it quotes becomes {src} -> {dst}."
        case StepKind.POD:
            return f"The destination is a pod of this node, behind device {row.more}."
        case StepKind.PEER:
            way = f"into the tunnel, device {row.more}, as a packet of identity {row.value}"
            return f"Its destination is a pod of node {ends.dst}: {way}."
        case StepKind.ROUTE:
            said = _ROUTES.get(row.value, f"cannot be found (error {-row.value})")
            return f"The route {said.format(device=row.more)}."
    return None


def _protocol(number: int) -> str:
    try:
        return Protocol(number).name
    except ValueError:
        return {1: "ICMP", 58: "ICMPv6"}.get(number, f"protocol {number}")
