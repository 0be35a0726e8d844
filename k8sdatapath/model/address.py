"""Addresses and ports, taken in many forms, kept in one."""

from __future__ import annotations

import reprlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeAlias

from k8sdatapath.errors import ModelError

__all__ = ["IPAddress", "IPNetwork", "address", "is_special", "network", "port", "shown"]

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 2


def shown(value: object) -> str:
    """A value as an error message shows it: one line of bounded length, whatever it is."""
    try:
        return _short.repr(value)
    except ValueError:  # an int of thousands of digits
        return f"a huge {type(value).__name__}"


def address(value: Any) -> IPAddress:
    """Make an address of what people have at hand.

    Takes text (surrounding blanks are trimmed), an ``ipaddress`` or ``netaddr`` address, 4 or 16 bytes in
    network order, or an int (IPv4 below 2**32).

    :raises ModelError: it is none of these; or it has a zone (``fe80::1%eth0``), or is IPv4 written as
        IPv6 (``::ffff:10.0.0.1``), which the kernel tables could not tell from the IPv4 address itself.
    """
    if type(value) is IPv4Address:
        return value
    found = value if type(value) is IPv6Address else _parse(value)
    if type(found) is IPv6Address:
        if found.scope_id is not None:
            raise ModelError(f"{shown(str(value))} has a zone: services have none")
        if int(found) >> 32 == 0xFFFF:
            raise ModelError(f"{shown(str(value))} is IPv4 written as IPv6: write {found.ipv4_mapped}")
    return found


def is_special(ip: IPAddress) -> bool:
    """Whether it is unspecified, loopback, link-local or multicast: no pod and no Service can have it."""
    number = int(ip)
    if ip.version == 4:
        return number == 0 or number >> 24 == 127 or number >> 16 == 0xA9FE or number >> 28 == 0xE
    return number < 2 or number >> 118 == 0xFE80 >> 6 or number >> 120 == 0xFF


def network(value: Any) -> IPNetwork:
    """Make a network of text (``10.0.0.0/8``; surrounding blanks are trimmed), or of one from ``ipaddress``.

    An address is the network that holds it alone. Bits of a host are cleared, as Kubernetes does.

    :raises ModelError: it is neither; or IPv4 written as IPv6.
    """
    if type(value) is IPv4Network:
        return value
    text = str(value) if isinstance(value, IPv4Network | IPv6Network | IPv4Address | IPv6Address) else value
    if isinstance(text, str):
        base, slash, length = text.strip().partition("/")
        try:
            found = address(base)
            if slash and length.isascii() and length.isdigit():
                return (IPv4Network if found.version == 4 else IPv6Network)(
                    (int(found), int(length)), strict=False
                )
            if not slash:
                return IPv4Network(found) if type(found) is IPv4Address else IPv6Network(found)
        except (ValueError, ModelError):
            pass
    raise ModelError(f"{shown(value)} is not a network: write 10.0.0.0/8 or fd00::/8")


def port(value: int) -> int:
    """Check a port number.

    :raises ModelError: not an int from 1 to 65535.
    """
    if type(value) is int and 0 < value < 65536:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536:
        return int(value)
    raise ModelError(f"{shown(value)} is not a port (1 to 65535)")


def _parse(value: Any) -> IPAddress:
    try:
        if isinstance(value, str):
            text = value.strip()
            return IPv6Address(text) if ":" in text else IPv4Address(text)
        if isinstance(value, bytes):
            return IPv6Address(value) if len(value) == 16 else IPv4Address(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return IPv4Address(value) if value < 1 << 32 else IPv6Address(value)
        if getattr(value, "version", None) in (4, 6):  # netaddr.IPAddress, ipaddress.IPv4Interface
            return (IPv4Address if value.version == 4 else IPv6Address)(int(value))
    except (ValueError, TypeError):
        pass
    raise ModelError(f"{shown(value)} is not an IP address")
