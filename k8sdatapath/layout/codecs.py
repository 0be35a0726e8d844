"""How single values lie in memory, and the names that annotations use for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import htonl, htons
from typing import TYPE_CHECKING, Annotated, Any

from attrs import frozen

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MAPPED", "Address", "Codec", "Mac", "Network", "Raw", "Scalar", "Text", "Wire", "Zeros"]


@frozen
class Codec:
    """How one type lies in memory: what a field's annotation carries.

    ``form`` is its :mod:`struct` format, of one item. Where Python's value is not what the struct module
    takes and gives, ``encode`` and ``decode`` translate.
    """

    name: str
    size: int
    align: int
    form: str
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None

    def sized(self, size: int) -> Codec:
        """This codec for a map whose elements have ``size`` bytes: itself, unless it can be of any size."""
        return self


class Scalar(Codec):
    """An integer."""

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest number it holds."""
        bits = 8 * self.size
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if self.form.islower() else (0, (1 << bits) - 1)


class Wire(Scalar):
    """An integer in the byte order of the network."""


class Address(Codec):
    """An IPv4 or IPv6 address in 16 bytes."""


class Mac(Codec):
    """A hardware address."""


class Text(Codec):
    """A NUL-terminated string in a fixed number of bytes."""


class Zeros(Codec):
    """Padding: no field in Python, zero whenever Python writes it."""


class Raw(Codec):
    """Bytes as they are; size 0 stands for whatever size the map has."""

    def sized(self, size: int) -> Codec:
        """Bytes of a map are as many as the map says."""
        return self if self.size else raw(size)


class Network(Codec):
    """A network as a trie's key: the length of the prefix, then 4 or 16 bytes of address."""

    def sized(self, size: int) -> Codec:
        """Keys of 8 bytes hold IPv4 networks, keys of 20 bytes networks of both families."""
        return _V4 if size == _V4.size else self


MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0.0.0.0/96, where IPv4 lives among the IPv6 addresses


def address_bytes(value: IPv4Address | IPv6Address) -> bytes:
    """The 16 bytes of an address of either family."""
    if isinstance(value, IPv4Address):
        return MAPPED + value.packed
    if not isinstance(value, IPv6Address):
        raise TypeError("an IPv4Address or IPv6Address is needed")
    if value.scope_id:
        raise ValueError("a scope cannot be written down in 16 bytes")
    return value.packed


def address_from(data: bytes) -> IPv4Address | IPv6Address:
    """The address in 16 bytes; an IPv4 address where it is one."""
    return IPv4Address(data[12:]) if data.startswith(MAPPED) else IPv6Address(data)


_LENGTH = 4  # bytes of the prefix length that a network begins with


def _v4_bytes(value: IPv4Network) -> bytes:
    if not isinstance(value, IPv4Network):
        raise TypeError("an IPv4Network is needed")
    return value.prefixlen.to_bytes(_LENGTH, sys.byteorder) + value.network_address.packed


def _v4_from(data: bytes) -> IPv4Network:
    return IPv4Network((data[_LENGTH:], int.from_bytes(data[:_LENGTH], sys.byteorder)))


def _network_bytes(value: IPv4Network | IPv6Network) -> bytes:
    if isinstance(value, IPv4Network):
        return (96 + value.prefixlen).to_bytes(_LENGTH, sys.byteorder) + MAPPED + value.network_address.packed
    if not isinstance(value, IPv6Network):
        raise TypeError("an IPv4Network or IPv6Network is needed")
    return value.prefixlen.to_bytes(_LENGTH, sys.byteorder) + value.network_address.packed


def _network_from(data: bytes) -> IPv4Network | IPv6Network:
    length, address = int.from_bytes(data[:_LENGTH], sys.byteorder), data[_LENGTH:]
    if length >= 96 and address.startswith(MAPPED):
        return IPv4Network((address[12:], length - 96))
    return IPv6Network((address, length))


def _mac_bytes(value: str) -> bytes:
    parts = value.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        raise ValueError("six pairs of hex digits with colons are needed")
    return bytes.fromhex("".join(parts))


def _mac_from(data: bytes) -> str:
    return data.hex(":")


def _text_bytes(size: int, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if len(data) >= size or b"\0" in data:
        raise ValueError(f"at most {size - 1} bytes of text fit, none of them NUL")
    return data


def _text_from(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _exact_bytes(size: int, value: Buffer) -> bytes:
    data = bytes(memoryview(value))
    if len(data) != size:
        raise ValueError(f"exactly {size} bytes are needed, not {len(data)}")
    return data


def _htonll(value: int) -> int:
    return int.from_bytes(value.to_bytes(8, "big"), sys.byteorder)


u8 = Annotated[int, Scalar("u8", 1, 1, "B")]
u16 = Annotated[int, Scalar("u16", 2, 2, "H")]
u32 = Annotated[int, Scalar("u32", 4, 4, "I")]
u64 = Annotated[int, Scalar("u64", 8, 8, "Q")]
i32 = Annotated[int, Scalar("i32", 4, 4, "i")]
i64 = Annotated[int, Scalar("i64", 8, 8, "q")]
# To wire order and from it are the same act.
be16 = Annotated[int, Wire("be16", 2, 2, "H", htons, htons)]
be32 = Annotated[int, Wire("be32", 4, 4, "I", htonl, htonl)]
be64 = Annotated[int, Wire("be64", 8, 8, "Q", _htonll, _htonll)]
addr = Annotated[IPv4Address | IPv6Address, Address("addr", 16, 4, "16s", address_bytes, address_from)]
mac = Annotated[str, Mac("mac", 6, 1, "6s", _mac_bytes, _mac_from)]

_V4 = Network("network", 8, 4, "8s", _v4_bytes, _v4_from)

#: Key of an LPM trie: ``struct { __u32 prefixlen; struct kd_addr addr; }``, both families in one trie, or
#: ``struct { __u32 prefixlen; __be32 addr; }`` for IPv4 alone.
network = Annotated[
    IPv4Network | IPv6Network, Network("network", 20, 4, "20s", _network_bytes, _network_from)
]


def cstr(size: int) -> Codec:
    """Text in ``size`` bytes, its terminating NUL included: ``Annotated[str, cstr(16)]``."""
    return Text(f"cstr({size})", size, 1, f"{size}s", partial(_text_bytes, size), _text_from)


@cache  # one object a size: layouts are kept by codec, and partials are equal to none but themselves
def raw(size: int) -> Codec:
    """Exactly ``size`` bytes: ``Annotated[bytes, raw(8)]``."""
    return Raw(f"raw({size})" if size else "bytes", size, 1, f"{size}s", partial(_exact_bytes, size))


def zeros(size: int) -> Codec:
    """Bytes that only C sees, written as zero: ``pad: ClassVar = zeros(3)``."""
    return Zeros(f"zeros({size})", size, 1, f"{size}x")
