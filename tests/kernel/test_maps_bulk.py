"""Bulk where the kernel has none, where its answer needs more room, and where others write meanwhile."""

from __future__ import annotations

import socket
import threading
from array import array
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from k8sdatapath.errors import PermissionDeniedError
from k8sdatapath.layout import layout_of, u32, u64
from k8sdatapath.maps import Hash, HashOfMaps, LRUHash, SockHash
from k8sdatapath.pybpf import maps as calls

pytestmark = pytest.mark.kernel
READ_ONLY = 1 << 3  # BPF_F_RDONLY


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield [opened.enter_context(socket.create_connection(server.getsockname())) for _ in range(5)]


def test_maps_without_bulk_are_walked(sockets: list[socket.socket]) -> None:
    """The kernel has no batch call for maps of sockets: C does the elements one by one."""
    with SockHash[u32].create("kdmap_socks", 8) as peers:
        raw = calls.KernelMap(peers.fd, peers.info)
        numbers = layout_of(u64).pack_many(each.fileno() for each in sockets)
        keys = array("I", [1, 2, 3, 4, 5])
        assert raw.update_many(keys, numbers, 5) == (0, 5)
        assert set(peers) == {1, 2, 3, 4, 5}
        met = {
            key: cookie
            for some_keys, cookies, _ in raw.dump()
            for key, cookie in zip(some_keys.cast("I"), cookies.cast("Q"), strict=True)
        }
        assert met == {number: peers.cookie(number) for number in (1, 2, 3, 4, 5)}
        assert raw.delete_many(array("I", [9, 1, 8, 2, 1]), 5) == 2
        assert set(peers) == {3, 4, 5}
        with open("/dev/null") as other:
            fds = array("Q", [sockets[0].fileno(), other.fileno(), sockets[1].fileno()])
            error, written = raw.update_many(array("I", [6, 7, 8]), fds, 3)
        assert error < 0
        assert written == 1
        assert set(peers) == {3, 4, 5, 6}


def test_bulk_that_must_not_overwrite_goes_one_by_one() -> None:
    with Hash[u32, u32].create("kdmap_bulk", 8) as table:
        table[3] = 33
        raw = calls.KernelMap(table.fd, table.info)
        assert raw.update_many(array("I", [1, 2, 3, 4]), array("I", [1, 2, 3, 4]), 4, calls.NOEXIST) == (
            -17,
            2,
        )
        assert table == {1: 1, 2: 2, 3: 33}


def test_a_chunk_grows_until_a_bucket_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_CHUNK", 1)
    with Hash[u32, u32].create("kdmap_chunk", 512) as table:
        wanted = {number: number for number in range(512)}
        table.update_many(wanted)
        assert dict(table.items()) == wanted


def test_a_dump_while_others_write() -> None:
    with LRUHash[u32, u64].create("kdmap_busy", 2048) as flows:
        stop = threading.Event()

        def churn() -> None:
            number = 0
            while not stop.is_set():
                flows.update_many({number + each: 7 for each in range(64)})
                flows.delete_many(range(number, number + 32))
                number += 64

        writer = threading.Thread(target=churn)
        writer.start()
        try:
            for _ in range(50):
                assert set(flows.values()) <= {7}
        finally:
            stop.set()
            writer.join()


def test_threads_do_not_see_each_other_s_keys() -> None:
    with Hash[u64, u64].create("kdmap_threads", 64) as table:
        wrong: list[tuple[int, int]] = []

        def work(own: int) -> None:
            for number in range(2000):
                table[own] = own << 32 | number
                if (value := table[own]) != own << 32 | number:
                    wrong.append((own, value))

        threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert not wrong
        assert table == {own: own << 32 | 1999 for own in range(4)}


def test_many_maps_go_into_a_map_at_once() -> None:
    with ExitStack() as made:
        tables = [made.enter_context(Hash[u32, u32].create("kdmap_in", 4)) for _ in range(200)]
        outer = made.enter_context(
            HashOfMaps[u32, Hash[u32, u32]].create("kdmap_outer", 256, inner=tables[0])
        )
        outer.update_many(dict(enumerate(tables)))
        outer.update_many(dict(enumerate(reversed(tables))))  # replaced: one wait for all, not one each
        assert len(outer) == 200
        with outer[0] as last:
            assert last.info.id == tables[-1].info.id


def test_a_map_that_may_only_be_read() -> None:
    with Hash[u32, u32].create("kdmap_fixed", 4, flags=READ_ONLY) as table:
        with pytest.raises(
            PermissionDeniedError, match=r"write element: kdmap_fixed\[1\].*read-only or frozen"
        ):
            table[1] = 1
        with pytest.raises(PermissionDeniedError):
            table.update_many({1: 1})
        with pytest.raises(PermissionDeniedError, match="delete from map: kdmap_fixed"):
            table.delete_many([1])
        assert not table
