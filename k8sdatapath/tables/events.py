"""kd_events and what decides what is in it: what became of packets, one by one. See ``kd/event.h``."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from functools import cache
from typing import Annotated, ClassVar

from attrs import frozen

from k8sdatapath.layout import addr, array, be16, i32, layout_of, raw, struct, u8, u16, u32, u64, zeros
from k8sdatapath.tables.level import Level, to_level

__all__ = [
    "EVENT_SIZE",
    "EVENT_TIME",
    "ConnectionRow",
    "EventFlags",
    "EventRow",
    "EventState",
    "FilterRow",
    "Level",
    "PackedEvent",
    "Point",
    "QueueRow",
    "SetupRow",
    "SourceLine",
    "TellingRow",
    "file_number",
    "outcome_index",
    "reason_of",
    "source_files",
    "source_line",
    "to_level",
]

_REASON_BITS, _LINE_BITS, _FILE_BITS, _FILE_NAME = 7, 10, 14, 24  # kd/here.h


class Point(IntEnum):
    """``enum kd_point``: where a packet, or a call of a socket, was seen."""

    FROM_POD = 0
    TO_POD = 1
    FROM_UPLINK = 2
    TO_UPLINK = 3
    FROM_OVERLAY = 4
    TO_OVERLAY = 5
    DRIVER = 6
    CONNECT = 7
    SENDMSG = 8
    RECVMSG = 9
    BIND = 10
    PAIRED = 11


class EventState(IntEnum):
    """``enum kd_event_state``: what a packet is to its connection."""

    UNKNOWN = 0
    NEW = 1
    ESTABLISHED = 2
    REPLY = 3
    RELATED = 4


class EventFlags(IntFlag):
    """``enum kd_event_flags``."""

    IPV6 = 1
    FRAGMENT = 2
    OWN = 4
    TUNNELLED = 8
    SOURCE_ASKED = 16
    DESTINATION_ASKED = 32
    DENIED_BY_SOURCE = 64
    DENIED_BY_DESTINATION = 128
    AUDITED = 256


@struct
class EventRow:
    """``struct kd_event``. An address of zeros, ``::``, stands for none."""

    source: addr
    destination: addr
    seen_source: addr
    dialled: addr
    time: u64
    packets: u64
    bytes: u64
    cookie: u64
    cgroup: u64
    netns: u64
    result: i32
    source_identity: u32
    destination_identity: u32
    source_device: u32
    destination_device: u32
    ifindex: u32
    length: u32
    source_rule: u32
    destination_rule: u32
    source_port: be16
    destination_port: be16
    seen_source_port: be16
    dialled_port: be16
    cpu: u16
    flags: u16
    point: u8
    protocol: u8
    tcp_flags: u8
    icmp_type: u8
    icmp_code: u8
    state: u8
    ttl: u8
    pad: ClassVar = zeros(1)


@struct
class PackedEvent:
    """The same with addresses as they are in memory, for those who read very many."""

    source: Annotated[bytes, raw(16)]
    destination: Annotated[bytes, raw(16)]
    seen_source: Annotated[bytes, raw(16)]
    dialled: Annotated[bytes, raw(16)]
    time: u64
    packets: u64
    bytes: u64
    cookie: u64
    cgroup: u64
    netns: u64
    result: i32
    source_identity: u32
    destination_identity: u32
    source_device: u32
    destination_device: u32
    ifindex: u32
    length: u32
    source_rule: u32
    destination_rule: u32
    source_port: be16
    destination_port: be16
    seen_source_port: be16
    dialled_port: be16
    cpu: u16
    flags: u16
    point: u8
    protocol: u8
    tcp_flags: u8
    icmp_type: u8
    icmp_code: u8
    state: u8
    ttl: u8
    pad: ClassVar = zeros(1)


EVENT_SIZE = layout_of(PackedEvent).size
EVENT_TIME = next(each.offset for each in layout_of(PackedEvent).fields if each.name == "time")


@struct
class SetupRow:
    """``struct kd_event_setup``."""

    level: u32 = Level.OFF
    interval: u32 = 5
    rate: u32 = 0
    filters: u32 = 0


_NOBODY = layout_of(addr).unpack(bytes(16))


@struct
class FilterRow:
    """``struct kd_event_filter``: what is 0, or ``::``, asks for nothing."""

    address: addr = _NOBODY
    mask: addr = _NOBODY
    outcomes: u64 = 0
    identity: u32 = 0
    points: u32 = 0
    port: be16 = 0
    protocol: u8 = 0
    pad: ClassVar = zeros(5)


@struct
class ConnectionRow:
    """``struct kd_connection``: what was seen of a connection, first of its lower end's packets."""

    packets: Annotated[tuple[int, ...], array(u64, 2)]
    bytes: Annotated[tuple[int, ...], array(u64, 2)]
    told: Annotated[tuple[int, ...], array(u32, 2)]
    points: Annotated[tuple[int, ...], array(u16, 2)]
    tcp_flags: Annotated[tuple[int, ...], array(u8, 2)]
    began: u8
    pad: ClassVar = zeros(1)


@struct
class QueueRow:
    """``struct kd_event_queue``: how far a CPU has written, and its reader read."""

    written: u64 = 0
    pad: ClassVar = zeros(56)
    taken: u64 = 0
    share: u64 = 0
    wanted: u64 = 0
    more: ClassVar = zeros(40)


@struct
class TellingRow:
    """``struct kd_telling``: what a CPU has told, and what it could not."""

    told: u64
    full: u64
    limited: u64
    next: u64
    woken: u64


@frozen
class SourceLine:
    """Where in the programs a packet was dropped."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def reason_of(result: int) -> int:
    """The bare number of a verdict, or of the reason for a drop."""
    return result if result >= 0 else -(-result & (1 << _REASON_BITS) - 1)


def outcome_index(number: int) -> int:
    """Where a verdict, or a reason to drop, is in kd_counters, and which bit of a filter."""
    return number if number >= 0 else 32 - number


def source_line(result: int) -> SourceLine | None:
    """Where the programs that this package ships decided to drop; None of what was not dropped."""
    where = -result >> _REASON_BITS
    if result >= 0 or not where:
        return None
    name = _shipped().get(where >> _LINE_BITS, "")
    return SourceLine(name, where & (1 << _LINE_BITS) - 1) if name else None


def file_number(name: str) -> int:
    """The number that stands for a source file in a drop's result."""
    number = 0
    for letter in name.encode()[:_FILE_NAME]:
        number = number * 31 + letter & 0xFFFFFFFF
    return number & (1 << _FILE_BITS) - 1


def source_files() -> list[str]:
    """The names of the files that this package's programs are made of."""
    from k8sdatapath.compiler import include_dir

    here = include_dir()
    entries = (path.name.removesuffix(".o") + ".c" for path in (here.parent / "_objects").glob("*.bpf.o"))
    return sorted({*(path.name for path in here.rglob("*.h")), *entries})


@cache
def _shipped() -> dict[int, str]:
    return {file_number(name): name for name in source_files()}
