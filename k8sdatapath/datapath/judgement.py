"""What a policy said of a packet: the rule that decided, and where none allows it, those nearest to it."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from k8sdatapath.datapath.policy_view import LiveRule, PolicyView
from k8sdatapath.model import IPAddress, Protocol
from k8sdatapath.model.policy import PortMatch, Toward
from k8sdatapath.tables.policy import Named
from k8sdatapath.tables.trace import Said, TracedRow

__all__ = ["Judgement", "judgement"]

_NEAREST = 3
_OF_LITTLE_USE = ("k8s:io.cilium", "in ")  # labels that make others no clearer


@frozen
class Judgement:
    """One pod's policy about one packet.

    :ivar pod: whose it is, of this node.
    :ivar toward: which way the connection is opened, as seen from there.
    :ivar peer: the other side.
    :ivar rule: the rule of a policy, or what else decided; as ``k8sdatapath policy get`` has it.
    :ivar audited: it is denied, and passes, as the policy only looks on.
    :ivar port: of the server; of ICMP its type.
    :ivar requests: it may connect, and each of its requests is held to rules at the server's socket.
    :ivar questions: these are questions to a name server, at the pod's own device.
    :ivar near: where no rule allows it, those that would allow something like it.
    """

    pod: IPAddress
    toward: Toward
    peer: IPAddress
    allowed: bool
    rule: str
    port: int = 0
    audited: bool = False
    requests: bool = False
    near: tuple[str, ...] = ()
    questions: bool = False

    def __str__(self) -> str:
        other = "from" if self.toward is Toward.INGRESS else "to"
        what = "allowed" if self.allowed and not self.audited else "denied"
        text = f"{self.toward.name.capitalize()} of {self.pod} {other} {self.peer} is {what}: {self.rule}."
        if self.requests:
            text += f" {self.held}"
        if self.audited:
            text += " The policy only looks on, so it passes."
        return text + (f" Nearest: {'; '.join(self.near)}." if self.near else "")

    @property
    def held(self) -> str:
        """What its requests are held to, in a sentence."""
        if self.questions:
            return "Each question to the name server is held to rules about names, at the pod's device."
        return "Each request is held to rules at the server's socket."

    def as_dict(self) -> dict[str, Any]:
        """As dicts, lists and texts, for JSON."""
        return {
            "pod": str(self.pod),
            "direction": self.toward.name.lower(),
            "peer": str(self.peer),
            "port": self.port,
            "allowed": self.allowed,
            "rule": self.rule,
            "audited": self.audited,
            "requests": self.requests,
            "questions": self.questions,
            "near": list(self.near),
        }


def judgement(row: TracedRow, view: PolicyView) -> Judgement:
    """What a program told, with the names that maps have."""
    said, ends = Said(row.value & 0xFFFF), row.tuple
    toward = Toward.EGRESS if Said.EGRESS in said else Toward.INGRESS
    pod, peer = (ends.dst, ends.src) if Said.RECEIVER in said else (ends.src, ends.dst)
    denied, audited = Said.DENIED in said, Said.AUDITED in said
    if Said.OPEN in said:
        rule = "no policy isolates"
    elif not row.more:
        rule = "nobody has said yet who it is" if denied else "as before"
    else:
        rule = view.name(Named.COUNTER, row.more) or f"rule {row.more}"
    port = row.value >> 16 & 0xFFFF
    near = _near(view, pod, peer, toward, ends.protocol, port) if denied else ()
    requests = Said.REQUESTS in said and not denied
    return Judgement(
        pod,
        toward,
        peer,
        not denied or audited,
        rule,
        port,
        denied and audited,
        requests,
        near,
        requests and ends.protocol == Protocol.UDP,
    )


def _near(
    view: PolicyView, pod: IPAddress, peer: IPAddress, toward: Toward, protocol: int, port: int
) -> tuple[str, ...]:
    number = view.party(peer).number

    def misses(rule: LiveRule) -> int:
        right_port = rule.protocol in (0, protocol) and rule.first <= port <= rule.last
        return (rule.peer not in (0, number)) + (not right_port)

    rules = [each for each in view.rules(pod) if each.toward is toward and each.allowed and each.peer != 1]
    rules.sort(key=misses)
    return tuple(dict.fromkeys(map(_shown, rules)))[:_NEAREST]


def _shown(rule: LiveRule) -> str:
    labels = [each for each in rule.peer_name.split("; ") if not each.startswith(_OF_LITTLE_USE)]
    ports = PortMatch(rule.protocol or None, rule.first, rule.last) if rule.protocol else "any port"
    return f"{rule.name} allows {', '.join(labels) or rule.peer_name or f'number {rule.peer}'}, {ports}"
