"""Flows in a few words, the same that Hubble has for them."""

from __future__ import annotations

from functools import lru_cache

from k8sdatapath.model.flow import DNS, HTTP, TCP, ICMPv4, ICMPv6, L7FlowType, Layer4, Layer7, TCPFlags

__all__ = ["flag_names", "summary"]

_FLAGS = tuple(TCPFlags[name] for name in ("SYN", "ACK", "RST", "FIN", "PSH", "URG", "ECE", "CWR", "NS"))
_ICMP4 = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    4: "SourceQuench",
    5: "Redirect",
    8: "EchoRequest",
    9: "RouterAdvertisement",
    10: "RouterSelection",
    11: "TimeExceeded",
    12: "ParameterProblem",
    13: "TimestampRequest",
    14: "TimestampReply",
}
_ICMP6 = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
    137: "Redirect",
}


@lru_cache(maxsize=512)
def flag_names(flags: int) -> str:
    """The flags of a segment for people: ``SYN, ACK``."""
    return ", ".join(flag.name for flag in _FLAGS if flags & flag and flag.name)


def summary(l4: Layer4 | None, l7: Layer7 | None = None) -> str:
    """A few words on what was seen: ``TCP Flags: SYN``, ``HTTP/1.1 GET http://web/``."""
    if l7 is not None:
        return _conversation(l7)
    if isinstance(l4, TCP):
        return f"TCP Flags: {flag_names(l4.flags)}"
    if isinstance(l4, ICMPv4 | ICMPv6):
        known = _ICMP4 if isinstance(l4, ICMPv4) else _ICMP6
        return f"{type(l4).__name__} {known.get(l4.type, l4.type)}"
    return type(l4).__name__ if l4 is not None else ""


def _conversation(l7: Layer7) -> str:
    record = l7.record
    answer = l7.type == L7FlowType.RESPONSE
    if isinstance(record, HTTP):
        asked = f"{record.method} {record.url}".strip()
        if not answer:
            return f"{record.protocol} {asked}"
        return f"{record.protocol} {record.code} {l7.latency_ns // 10**6}ms ({asked})"
    if isinstance(record, DNS):
        types = ",".join(record.qtypes)
        if not answer:
            return f"DNS Query {record.query} {types}"
        if record.rcode:
            return f"DNS Answer RCode: {record.rcode} ({record.query} {types})"
        found = ",".join((*record.ips, *record.cnames))
        return f'DNS Answer "{found}" TTL: {record.ttl} ({record.query} {types})'
    return ""
