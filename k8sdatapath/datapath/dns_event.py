"""DnsEvent: a question to a name server, or its answer, as it has passed a pod's device, or has not."""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.model import IPAddress, Protocol
from k8sdatapath.net.dns_message import DnsMessage

__all__ = ["DnsEvent"]


@frozen(kw_only=True)
class DnsEvent:
    """Somebody was asked for a name, or has answered.

    :ivar time: seconds of the monotonic clock.
    :ivar client: the pod's address and port; likewise ``server``, which is never a service's.
    :ivar verdict: ``"allowed"``, ``"denied"``, ``"audited"`` (it would be denied), ``"answer"``.
    :ivar held: policies hold the pod to names there.
    :ivar protocol: ``Protocol.UDP`` or ``Protocol.TCP``.
    :ivar message: what was said.
    :ivar latency: of an answer: seconds since it was asked.
    """

    time: float
    client: tuple[IPAddress, int]
    server: tuple[IPAddress, int]
    verdict: str
    held: bool
    protocol: Protocol
    message: DnsMessage
    latency: float = 0.0
