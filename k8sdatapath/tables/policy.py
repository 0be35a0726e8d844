"""The maps of policies, but for their counters: who is who, and who may reach whom."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

from k8sdatapath.layout import array, be16, cstr, struct, u8, u32

__all__ = [
    "LENGTHS_TABLE",
    "NAMES",
    "IdentityKey",
    "NameKey",
    "NameRow",
    "Named",
    "PartyRow",
    "PolicyFlags",
    "PolicyRow",
    "RuleKey",
    "RuleRow",
    "TalkRow",
]

LENGTHS_TABLE = 17
"""Of the lengths in a policy's row: the bit from which on they say of which table they are."""
NAMES = 0x80000000
"""Of a rule's ``l7``: the rest is the number of a set of names, ``KD_NAMES``."""


@struct
class PartyRow:
    """``struct kd_party``: who is behind an address."""

    number: u32
    identity: u32


@struct
class IdentityKey:
    """``struct kd_identity_key``: whom a tunnel speaks of; network 0 is none that policies tell apart."""

    identity: u32
    network: u32


class PolicyFlags(IntFlag):
    """``enum kd_policy_flags``."""

    AUDIT = 1
    OPEN = 2
    ANSWER = 4
    NAMES = 8


@struct
class PolicyRow:
    """``struct kd_policy``: one direction of a policy, under twice its number and the direction.

    It is not written in one piece: ``lengths`` and ``named`` tell in their upper bits of which table.
    """

    table: u32 = 0
    revision: u32 = 0
    lengths: u32 = 0
    named: u32 = 0
    flags: u32 = 0


@struct
class RuleKey:
    """``struct kd_rule_key``: of the port, ``bits`` count."""

    table: u32
    number: u32
    port: be16
    protocol: u8
    bits: u8


@struct
class RuleRow:
    """``struct kd_rule``."""

    precedence: u32
    counter: u32
    deny: u32
    l7: u32 = 0


class Named(IntEnum):
    """``enum kd_named``: what a number stands for."""

    PARTY = 0
    COUNTER = 1
    ANSWER = 2


@struct
class NameKey:
    """``struct kd_name_key``."""

    kind: u32
    number: u32


@struct
class NameRow:
    """``struct kd_name``."""

    text: Annotated[str, cstr(496)]


@struct
class TalkRow:
    """``struct kd_talk``: what both ends have allowed. ``last_seen`` is in seconds of CLOCK_MONOTONIC."""

    revision: Annotated[tuple[int, ...], array(u32, 2)]
    counter: Annotated[tuple[int, ...], array(u32, 2)]
    last_seen: u32
    flags: u32
