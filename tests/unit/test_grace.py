"""Numbers and ranges: nobody shares one, none is lost, and none is reused while a program may hold it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import CapacityError
from k8sdatapath.tables.grace import Numbers, Ranges


class Wait:
    """Counts how often somebody waited for running programs."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def test_a_number_is_reused_only_after_waiting() -> None:
    wait = Wait()
    numbers = Numbers("things", 2, wait)
    first, second = numbers.take(), numbers.take()
    numbers.give(first)
    assert wait.times == 0
    assert numbers.take() == first
    assert wait.times == 1
    with pytest.raises(CapacityError, match="3 things needed, 2 fit"):
        numbers.take()
    assert second != first


def test_a_number_that_nobody_saw_is_reused_at_once() -> None:
    wait = Wait()
    numbers = Numbers("things", 1, wait)
    numbers.put_back(numbers.take())
    numbers.take()
    assert wait.times == 0


def test_numbers_in_use_are_not_given_out() -> None:
    numbers = Numbers("things", 6, Wait(), used=[0, 2, 5])
    assert numbers.available == 3
    assert {numbers.take() for _ in range(3)} == {1, 3, 4}


def test_fresh_ranges_are_used_before_waiting_for_old_ones() -> None:
    wait = Wait()
    ranges = Ranges("slots", 16, wait)
    first = ranges.take(5)
    ranges.give(first, 5)
    assert ranges.take(8) != first
    assert wait.times == 0
    assert ranges.take(8) == first
    assert wait.times == 1


def test_what_does_not_fit_is_refused() -> None:
    ranges = Ranges("slots", 16, Wait())
    ranges.take(3)
    with pytest.raises(CapacityError, match="slots in one run"):
        ranges.take(9)
    ranges.take(8)


def test_a_size_that_is_no_power_of_two_is_used_whole() -> None:
    ranges = Ranges("slots", 24, Wait())
    assert sorted(ranges.take(8) for _ in range(3)) == [0, 8, 16]


@given(
    size=st.integers(1, 300),
    steps=st.lists(st.tuples(st.sampled_from(["take", "give", "put_back", "restart"]), st.integers(1, 40))),
)
def test_ranges_never_overlap_and_are_never_lost(size: int, steps: list[tuple[str, int]]) -> None:
    ranges = Ranges("slots", size, Wait())
    held: list[tuple[int, int]] = []
    for step, number in steps:
        if step == "take":
            try:
                offset = ranges.take(number)
            except CapacityError:
                continue
            room = 1 << (number - 1).bit_length()
            assert offset % room == 0
            assert offset + number <= size
            assert all(offset + room <= o or o + (1 << (n - 1).bit_length()) <= offset for o, n in held)
            held.append((offset, number))
        elif step == "restart":
            ranges = Ranges("slots", size, Wait(), held)
        elif held:
            getattr(ranges, step)(*held.pop(number % len(held)))
        taken = sum(1 << (n - 1).bit_length() for _, n in held)
        assert ranges.available == size - taken
    for run in held:
        ranges.give(*run)
    largest = 1 << (size.bit_length() - 1)
    assert ranges.take(largest) == 0
