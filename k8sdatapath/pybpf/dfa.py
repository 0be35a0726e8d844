"""Deterministic automata, built in C: all states in one crossing."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Sequence
from enum import IntEnum
from itertools import chain

from attrs import frozen

from k8sdatapath.pybpf.calls import check
from k8sdatapath.pybpf.lib import ffi, lib

__all__ = ["Dfa", "NodeKind", "build"]


class NodeKind(IntEnum):
    """What a node of the nondeterministic automaton does; ``enum kd_nfa_kind``."""

    SET = lib.KD_NFA_SET
    SPLIT = lib.KD_NFA_SPLIT
    FIRST = lib.KD_NFA_FIRST
    LAST = lib.KD_NFA_LAST
    ACCEPT = lib.KD_NFA_ACCEPT


@frozen
class Dfa:
    """State 0 is dead, state 1 the start.

    :ivar table: the next state, by ``state * classes + class``.
    :ivar accepts: by state, the numbers of the rules that hold if the input ends there.
    """

    table: array[int]
    accepts: tuple[tuple[int, ...], ...]


def build(
    nodes: Sequence[tuple[NodeKind, int, int]],
    start: int,
    sets: Sequence[bytes],
    *,
    max_states: int,
    max_work: int,
) -> Dfa | None:
    """The smallest automaton that tells which rules hold; None if it takes more than it may.

    :param nodes: kind, argument, next: see ``enum kd_nfa_kind`` in ``csrc/cdef/dfa.h``.
    :param sets: for each set of bytes, one byte per class of bytes: whether the set has it.
    :param max_work: how many nodes may be looked at, all in all.
    """
    classes = len(sets[0]) if sets else 1
    given = array("I", chain.from_iterable(nodes))
    table = array("I", bytes(4 * max_states * classes))
    accepts = array("I", bytes(4 * max_states))
    rules = array("I", bytes(4 * (4 * max_states + len(nodes))))
    members = b"".join(sets)
    views = [ffi.from_buffer("uint32_t[]", each) for each in (table, accepts, rules)]
    described = ffi.new("struct kd_dfa *")
    described.nodes = ffi.cast("struct kd_nfa_node *", held := ffi.from_buffer(given))
    described.sets = in_sets = ffi.from_buffer("uint8_t[]", members)
    described.count, described.start, described.classes = len(nodes), start, classes
    described.max_states, described.max_work, described.max_rules = max_states, max_work, len(rules)
    described.table, described.accepts, described.rules = views
    result = lib.kd_dfa_build(described)
    del held, in_sets  # C is done with them
    if result == -errno.E2BIG:
        return None
    check(result, "build automaton")
    lists = {at: tuple(rules[at + 1 : at + 1 + rules[at]]) for at in set(accepts[: described.states])}
    return Dfa(table[: described.states * classes], tuple(lists[at] for at in accepts[: described.states]))
