"""Maglev tables in C against the paper's algorithm in Python."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath.datapath.maglev import SIZES, maglev_slots, table_size
from k8sdatapath.errors import KernelError
from k8sdatapath.model import Backend, Protocol
from k8sdatapath.pybpf.maglev import fill

M64 = (1 << 64) - 1


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def oracle(members: list[tuple[int, int, int]], size: int) -> list[int]:
    """Section 3.4 of the paper, with weights as shares of turns."""
    table: list[int | None] = [None] * size
    heaviest = max(weight for _, _, weight in members)
    walks = [
        [(mix(h) % size + j * (mix(h ^ 0x5851F42D4C957F2D) % (size - 1) + 1)) % size for j in range(size)]
        for h, _, _ in members
    ]
    credit = [0] * len(members)
    at = [0] * len(members)
    while None in table:
        for i, (_, value, weight) in enumerate(members):
            credit[i] += weight
            if credit[i] < heaviest or None not in table:
                continue
            credit[i] -= heaviest
            while table[walks[i][at[i]]] is not None:
                at[i] += 1
            table[walks[i][at[i]]] = value
    return [value for value in table if value is not None]


@settings(max_examples=30)
@given(
    members=st.lists(
        st.tuples(st.integers(0, M64), st.integers(1, 1 << 32), st.integers(0, 5)), min_size=1, max_size=8
    ).filter(lambda members: any(weight for _, _, weight in members))
)
def test_the_c_table_is_the_paper_s(members: list[tuple[int, int, int]]) -> None:
    members = [(hash, value & 0xFFFFFFFF, weight) for hash, value, weight in members]
    assert list(fill(members, 251)) == oracle(members, 251)


def pool(count: int) -> list[Backend]:
    return [Backend(f"10.244.{i // 200}.{i % 200 + 1}", 8080) for i in range(count)]


def test_order_and_row_numbers_do_not_matter() -> None:
    backends = pool(5)
    forward = maglev_slots(backends, [1, 2, 3, 4, 5], Protocol.TCP)
    backward = maglev_slots(backends[::-1], [5, 4, 3, 2, 1], Protocol.TCP)
    assert forward == backward


def test_shares_are_equal_within_one_slot() -> None:
    shares = Counter(maglev_slots(pool(7), list(range(7)), Protocol.UDP)).values()
    assert max(shares) - min(shares) <= 1


def test_weights_are_shares() -> None:
    backends = [Backend(f"10.0.0.{i}", 80, weight=weight) for i, weight in enumerate((70, 70, 30, 30), 1)]
    shares = Counter(maglev_slots(backends, [0, 1, 2, 3], Protocol.TCP))
    size = table_size(4)
    for id, weight in enumerate((70, 70, 30, 30)):
        assert abs(shares[id] - size * weight / 200) <= 2


def test_a_backend_that_leaves_moves_few_slots_of_the_others() -> None:
    backends = pool(100)
    before = maglev_slots(backends, list(range(100)), Protocol.TCP)
    after = maglev_slots(backends[:-1], list(range(99)), Protocol.TCP)
    assert len(before) == len(after)
    moved = sum(was != now for was, now in zip(before, after, strict=True) if was != 99)
    assert moved / len(before) <= 0.02  # the paper's figure 12: about 1.5 % at M = 100 N


def test_tables_grow_with_their_sets() -> None:
    assert [table_size(n) for n in (1, 3, 100, 5000)] == [251, 509, 16381, 131071]
    assert all(all(size % d for d in range(2, int(size**0.5) + 1)) for size in SIZES)


def test_nobody_to_choose_is_refused() -> None:
    with pytest.raises(KernelError):
        fill([(1, 1, 0)], 251)
