"""The maps of HTTP policy: automata, ports, connections, events. See ``kd/l7_types.h``."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, ClassVar

from k8sdatapath.layout import addr, array, be16, raw, struct, u8, u16, u32, u64, zeros
from k8sdatapath.tables.conntrack import Tuple

__all__ = [
    "AHEAD",
    "COMMON",
    "GROUPS",
    "NAME",
    "RUN",
    "TEXT",
    "WORDS",
    "Action",
    "AutomatonRow",
    "CellBlock",
    "ConnFlags",
    "ConnRow",
    "EventKind",
    "EventRow",
    "FactRow",
    "Framing",
    "PortFlags",
    "PortKey",
    "PortRow",
    "RuleNameKey",
    "Section",
    "StreamRow",
]

CELLS = 16384
RUN = 1
"""Of a cell that leads to where any byte but a control character changes nothing."""
WORDS = 4
TEXT = 256
AHEAD = 256
NAME = 32
COMMON = 1
"""The automaton that reads what is the same for all rules."""
GROUPS = 4
"""How many automata may share the rules of a set."""


class Action(IntEnum):
    """``enum kd_l7_action``."""

    GO = 0
    ERROR = 1
    TARGET = 2
    LINE = 3
    DIGIT = 4
    HEADER = 5
    HEAD = 6
    HEX = 7
    CHUNK = 8
    BODY = 9
    STATUS = 10


class Section(IntEnum):
    """``enum kd_l7_section``."""

    REQUEST = 0
    HEADERS = 1
    CHUNKS = 2
    LAST = 3
    RESPONSE = 4
    ANSWER = 5
    VALUE = 6


class Framing(IntEnum):
    """What a header means for the message; ``enum kd_l7_row_flags``."""

    NONE = 0
    LENGTH = 1
    BAD_LENGTH = 2
    ENCODING = 3
    BAD_ENCODING = 4
    HOST = 5
    UPGRADE = 6


class PortFlags(IntFlag):
    """``enum kd_l7_port_flags``."""

    OBSERVE = 1
    AUDIT = 2


class ConnFlags(IntFlag):
    """``enum kd_l7_conn_flags``."""

    CLIENT = 1
    OBSERVED = 2
    ENDED = 4
    AUDITED = 8
    ANY = 16
    CLOSES = 32
    BEGUN = 64
    HTTP2 = 128


class EventKind(IntEnum):
    """``enum kd_l7_event_kind``."""

    REQUESTED = 1
    RESPONDED = 2


@struct
class CellBlock:
    """``struct kd_l7_block``."""

    cell: Annotated[tuple[int, ...], array(u32, CELLS)]


@struct
class AutomatonRow:
    """``struct kd_l7_automaton``."""

    cells: u32 = 0
    rows: u32 = 0
    generation: u32 = 0
    headers: u32 = 0
    more: u32 = 0
    cells_size: u32 = 0
    rows_size: u32 = 0
    start: Annotated[tuple[int, ...], array(u32, len(Section))] = (0,) * len(Section)
    initials: Annotated[tuple[int, ...], array(u32, NAME)] = (0,) * NAME
    classes: Annotated[bytes, raw(256)] = bytes(256)


@struct
class FactRow:
    """``struct kd_l7_row``."""

    holds: Annotated[tuple[int, ...], array(u64, WORDS)]
    lacks: Annotated[tuple[int, ...], array(u64, WORDS)]
    next: u32 = 0
    flags: u32 = 0
    rule: u32 = 0
    candidates: u16 = 0
    seen: u16 = 0


@struct
class RuleNameKey:
    """``struct kd_l7_name_key``."""

    rules: u32
    rule: u32


@struct
class PortKey:
    """``struct kd_l7_port_key``."""

    addr: addr
    port: be16
    toward: u8 = 0
    pad: ClassVar = zeros(1)


@struct
class PortRow:
    """``struct kd_l7_port``."""

    rules: u32
    flags: u32


@struct
class StreamRow:
    """``struct kd_l7_stream``."""

    body: u64
    length: u64
    facts: Annotated[tuple[int, ...], array(u64, WORDS)]
    state: u32
    automaton: u32
    head: u32
    flags: u32
    target: u32
    number: u32


@struct
class ConnRow:
    """``struct kd_l7_conn``."""

    way: Tuple
    requests: StreamRow
    responses: StreamRow
    asked_at: u64
    ended_at: u64
    heads: u64
    netns: u64
    received: u64
    policy: u32
    revision: u32
    identity: u32
    rules: u32
    generation: u32
    flags: u32
    asked: u32
    answered: u32
    at: u32
    begin: u32
    reason: u32
    epoch: u32
    sent: u32
    size: u32
    ahead_at: u32
    ahead_size: u32
    text: Annotated[bytes, raw(TEXT + AHEAD)]
    ahead: Annotated[bytes, raw(AHEAD + 8)]


@struct
class EventRow:
    """``struct kd_l7_event``."""

    time: u64
    cookie: u64
    latency: u64
    way: Tuple
    identity: u32
    rules: u32
    rule: u32
    reason: u32
    status: u16
    kind: u8
    flags: u8
    size: u32
    text: Annotated[bytes, raw(TEXT)]
