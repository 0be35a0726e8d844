"""The body of an answer in chunks, however its bytes come."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import IncompleteRead
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.kube.chunks import Chunks


def reader(data: bytes, *cuts: int) -> Chunks:
    """Chunks of bytes that come in pieces."""
    places = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    pieces = (data[one:other] for one, other in pairwise(places))
    return Chunks(lambda: next(pieces, b""))


def all_of(chunks: Chunks) -> Iterator[bytes]:
    while found := chunks.read():
        yield found


def sent(*parts: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


bodies = st.lists(st.binary(min_size=1, max_size=40) | st.just(b"\r\n0\r\n\r\n"), max_size=6)


@given(bodies, st.lists(st.integers(0, 500), max_size=20), st.sampled_from([b"", b"A: b\r\nC: d\r\n"]))
def test_the_body_is_the_same_wherever_it_is_cut(parts: list[bytes], cuts: list[int], trailer: bytes) -> None:
    chunks = reader(sent(*parts, trailer=trailer), *cuts)
    assert b"".join(all_of(chunks)) == b"".join(parts)
    assert chunks.ended


def test_all_that_has_come_is_given_at_once() -> None:
    data = sent(b"one", b"two", b"three")
    chunks = reader(data, data.index(b"three") + 2)
    assert list(all_of(chunks)) == [b"onetwoth", b"ree"]


def test_extensions_are_passed_over() -> None:
    assert list(all_of(reader(b"3;a=b\r\none\r\n0\r\n\r\n"))) == [b"one"]


@given(bodies.filter(bool), st.integers(1, 10_000))
def test_an_end_too_early_is_told(parts: list[bytes], cut: int) -> None:
    data = sent(*parts)
    chunks = reader(data[: -(cut % (len(data) - 1) + 1)])
    with pytest.raises(IncompleteRead):
        list(all_of(chunks))


@pytest.mark.parametrize(
    "data", [b"nothing\r\n", b"\r\n\r\n", b"-1\r\n\r\n", b"3\r\nfour\r\n0\r\n\r\n", b"1" * (1 << 17)]
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"chunk|int"):
        list(all_of(reader(data)))
