"""What an IdentityPolicy has in the kernel, as values: its pods, and pairs of identities."""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.datapath.policy_maps import Requests
from k8sdatapath.datapath.policy_rows import Because, Cause
from k8sdatapath.model import IPAddress
from k8sdatapath.model.policy import Toward

__all__ = ["EndpointPolicy", "IdentityPair"]


@frozen
class EndpointPolicy:
    """A pod of this node, and what it has for a policy.

    :ivar identity: that of its labels.
    :ivar policy: the number that all pods of this identity share.
    :ivar isolated: which ways a policy isolates it, if only by looking on.
    :ivar rules: how many its policy has in the kernel.
    :ivar audited: its policy only looks on, whether or not all others do.
    :ivar audits: which ways only policies restrict it that look on.
    """

    name: str
    addresses: tuple[IPAddress, ...]
    identity: int
    policy: int
    isolated: frozenset[Toward]
    rules: int
    audited: bool = False
    audits: frozenset[Toward] = frozenset()


@frozen
class IdentityPair:
    """A rule as the kernel has it: ``ingress of 300 from 301: TCP 8080 allowed by ...``.

    :ivar subject: the identity whose pods it is for.
    :ivar peer: that of the other side; 0 is everybody.
    :ivar protocol: 0 is any.
    :ivar first: of the ports; likewise ``last``.
    :ivar l7: what requests have to be, one of these is enough; none at all: anything.
    :ivar audited: it is of policies that only look on, so that what it denies passes.
    """

    subject: int
    toward: Toward
    peer: int
    protocol: int
    first: int
    last: int
    allowed: bool
    because: Because
    causes: tuple[Cause, ...]
    l7: Requests = frozenset()
    audited: bool = False
