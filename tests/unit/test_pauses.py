"""Garbage is looked for after every few changes, and what the first ones made is left in peace."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from k8sdatapath.component import Delta, Report, Told
from k8sdatapath.reconcile import Applied, ShortPauses


@pytest.fixture
def pauses() -> Iterator[ShortPauses]:
    before = gc.get_threshold()
    try:
        yield ShortPauses()
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Loop:
    """A cycle."""

    def __init__(self) -> None:
        self.itself = self


def applied(changes: int) -> Applied:
    told = [Told(("EndpointSlice", "shop", f"s{number}"), 0.0) for number in range(changes)]
    return Applied(Delta(told=tuple(told)), Report())


def test_a_cycle_is_gone_after_some_changes(pauses: ShortPauses) -> None:
    pauses(applied(1))
    gone = weakref.ref(Loop())
    for _ in range(10):
        assert gone() is not None
        pauses(applied(19))
    pauses(applied(10))
    assert gone() is None


def test_what_the_first_changes_made_is_looked_at_no_more(pauses: ShortPauses) -> None:
    kept = [[] for _ in range(1000)]
    pauses(applied(10_000))
    assert gc.get_freeze_count() >= len(kept)
    assert not any(each is one for each in gc.get_objects() for one in kept[:1])
