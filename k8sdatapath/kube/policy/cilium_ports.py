"""``toPorts`` and ``icmps`` of Cilium's policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from k8sdatapath.errors import ModelError, near_misses
from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around
from k8sdatapath.kube.policy.cilium_dns import dns_rules
from k8sdatapath.kube.policy.cilium_http import http_rules
from k8sdatapath.kube.policy.reading import known, port_name
from k8sdatapath.model import Protocol, port
from k8sdatapath.model.address import shown
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.policy import ALL_PORTS, PortMatch

__all__ = ["Ports", "ports"]

MAX_PORTS = 40
"""In one list, as Cilium has it."""

_PROXY = "no proxy is here that could do this"
_UNABLE = {
    "listener": _PROXY,
    "terminatingTLS": _PROXY,
    "originatingTLS": _PROXY,
    "serverNames": "names that TLS asks for are not looked at",
}
_ICMP = {"IPv4": 1, "IPv6": 58}
_TYPES: dict[str, dict[str, int]] = {
    "IPv4": {
        "EchoReply": 0,
        "DestinationUnreachable": 3,
        "Redirect": 5,
        "Echo": 8,
        "EchoRequest": 8,
        "RouterAdvertisement": 9,
        "RouterSelection": 10,
        "TimeExceeded": 11,
        "ParameterProblem": 12,
        "Timestamp": 13,
        "TimestampReply": 14,
        "Photuris": 40,
        "ExtendedEchoRequest": 42,
        "ExtendedEchoReply": 43,
    },
    "IPv6": {
        "DestinationUnreachable": 1,
        "PacketTooBig": 2,
        "TimeExceeded": 3,
        "ParameterProblem": 4,
        "EchoRequest": 128,
        "EchoReply": 129,
        "MulticastListenerQuery": 130,
        "MulticastListenerReport": 131,
        "MulticastListenerDone": 132,
        "RouterSolicitation": 133,
        "RouterAdvertisement": 134,
        "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136,
        "RedirectMessage": 137,
    },
}


@frozen
class Ports:
    """Some ports, and what requests to them have to be: one of some; none at all: anything.

    :ivar path: of the field.
    """

    path: str
    matches: tuple[PortMatch, ...]
    requests: tuple[HTTPRule, ...] | tuple[NamePattern, ...] = ()


def ports(rule: Field, around: Around) -> list[Ports] | None:
    """What a rule says of ports; None: nothing at all."""
    lists, types = rule["toPorts"].items(), rule["icmps"].items()
    if lists and types:
        rule["icmps"].refuse("icmps and toPorts cannot be in one rule: write two")
    if not lists and not types:
        return None
    found = [_ports(field, around) for field in lists]
    plain = [match for each in found if not each.requests for match in each.matches]
    plain += [each for field in types for each in _icmps(field)]
    asking = [each for each in found if each.requests]
    return [Ports(rule.path, tuple(plain)), *asking] if plain else asking


def _ports(field: Field, around: Around) -> Ports:
    known(field, ("ports", "rules"), _UNABLE)
    given = field["ports"].given().items()
    if not given or len(given) > MAX_PORTS:
        field["ports"].refuse(f"{len(given)} ports: from 1 to {MAX_PORTS} are expected")
    requests = http_rules(field["rules"], around)
    names = dns_rules(field["rules"], around)
    asks = "HTTP" if requests else "DNS" if names else ""
    matches = tuple(match for each in given for match in _port(each, asks))
    return Ports(field.path, matches, requests or names)


def _port(field: Field, asks: str) -> Iterator[PortMatch]:
    """:param asks: what is asked of requests, if anything is."""
    known(field, ("port", "endPort", "protocol"))
    word = field["protocol"].choice("TCP", "UDP", "SCTP", "ANY", default="TCP" if asks == "HTTP" else "ANY")
    if asks == "HTTP" and word != "TCP":
        field["protocol"].refuse(f"requests of HTTP are asked of TCP, not of {word}")
    if asks == "DNS" and word == "SCTP":
        field["protocol"].refuse("names are asked for over UDP, not over SCTP")
    if asks == "DNS" and field["endPort"].value not in (None, 0):
        field["endPort"].refuse("names are asked for at ports one by one, not at a range")
    protocols = list(Protocol) if word == "ANY" else [Protocol[word]]
    if asks == "DNS" and word == "ANY":
        protocols.remove(Protocol.SCTP)
    text, last = field["port"].text(), field["endPort"]
    if not text.isdecimal():
        name = port_name(field["port"])
        if last.value not in (None, 0):
            last.refuse(f"a range begins with a number, not with {shown(text)}")
        yield from (PortMatch(protocol, name=name) for protocol in protocols)
        return
    begin = field["port"].made(_number)
    end = begin if last.value in (None, 0) else last.made(port)
    if begin == 0:
        if asks:
            field["port"].refuse("requests are asked of ports by number or name, not of all ports")
        if end:
            last.refuse("a range needs its first port")
        yield from [ALL_PORTS] if word == "ANY" else [PortMatch(protocols[0])]
        return
    if end < begin:
        last.refuse(f"{end} is before the first port of the range, {begin}")
    yield from (PortMatch(protocol, begin, end) for protocol in protocols)


def _number(text: str) -> int:
    """0 stands for all ports. What begins with another 0 is an octal number to Cilium."""
    if len(text) > 1 and text[0] == "0":
        raise ModelError(f"{shown(text)} begins with 0: write {text.lstrip('0') or 0}")
    value = int(text) if text.isascii() and len(text) < 6 else text
    return 0 if value == 0 else port(value)  # type: ignore[arg-type]


def _icmps(field: Field) -> Iterator[PortMatch]:
    given = known(field, ("fields",))["fields"].given().items()
    if len(given) > MAX_PORTS:
        field["fields"].refuse(f"{len(given)} types: at most {MAX_PORTS} are expected")
    for each in given:
        known(each, ("family", "type"))
        family = each["family"].choice("IPv4", "IPv6", default="IPv4")
        number = _type(each["type"].given(), family)
        yield PortMatch(_ICMP[family], number, number)


def _type(field: Field, family: str) -> int:
    value: Any = field.value
    if type(value) is str and value.isascii() and value.isdecimal() and len(value) < 4:
        value = int(value)
    if type(value) is int and 0 <= value < 256:
        return value
    if type(value) is str and value in _TYPES[family]:
        return _TYPES[family][value]
    misses = near_misses(str(value)[:60], _TYPES[family])
    return field.refuse(f"{shown(value)} is no type of ICMP of {family}: {misses}")
