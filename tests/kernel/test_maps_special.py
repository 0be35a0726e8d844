"""Maps whose values are programs, sockets and maps; and events out of a ring."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from k8sdatapath import maps
from k8sdatapath.compiler import compile
from k8sdatapath.errors import ClosedError, KernelError, KeyNotFoundError, LayoutError, MapFullError
from k8sdatapath.layout import struct, u32, u64
from k8sdatapath.objects import Object
from k8sdatapath.programs import Program

pytestmark = pytest.mark.kernel
DATA = Path(__file__).parent.parent / "data"
SO_COOKIE = 57


@struct
class Event:
    number: u32
    byte: u32


@pytest.fixture
def loaded() -> Iterator[Object]:
    with compile(DATA / "maps.bpf.c").load() as loaded:
        yield loaded


def produce(loaded: Object, count: int, byte: int, size: int) -> int:
    """Let the kernel append events; returns how many did not fit."""
    return loaded.program("produce", Program).run(bytes([count, byte, size]) + bytes(32)).retval


# ---- RingBuffer ----


def test_events_come_out_as_values_in_order(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer[Event]) as events:
        assert repr(events) == "<RingBuffer events Event 4096 bytes>"
        assert events.drain() == []
        assert produce(loaded, 3, 9, 8) == 0
        assert events.drain() == [Event(0, 9), Event(1, 9), Event(2, 9)]
        assert events.drain() == []


def test_events_of_any_size_come_out_as_bytes(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer) as events:
        produce(loaded, 1, 7, 8)
        produce(loaded, 2, 0xAB, 20)
        assert events.drain() == [bytes(4) + b"\7\0\0\0", b"\xab" * 20, b"\xab" * 20]


def test_events_come_out_packed_for_numpy(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer[Event]) as events:
        produce(loaded, 50, 3, 8)
        rows = np.frombuffer(events.drain_packed(), [("number", "u4"), ("byte", "u4")])
        assert rows["number"].tolist() == list(range(50))


def test_what_a_program_thought_better_of_does_not_come_out(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer) as events:
        produce(loaded, 5, 1, 0)
        produce(loaded, 1, 2, 20)
        assert events.drain() == [b"\2" * 20]


def test_events_round_and_round_the_ring(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer) as events:
        for turn in range(20):  # 20 * 64 * 32 bytes: ten times around
            assert produce(loaded, 64, turn, 20) == 0
            assert events.drain() == [bytes([turn]) * 20] * 64


def test_a_full_ring_loses_the_newest(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer[Event]) as events:
        lost = sum(produce(loaded, 64, turn, 8) for turn in range(5))
        kept = events.drain()
        assert len(kept) + lost == 5 * 64
        assert kept[:2] == [Event(0, 0), Event(1, 0)]
        assert lost == 5 * 64 - 4096 // 16 + (len(kept) != 256)


def test_a_record_of_another_size_is_an_error(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer[Event]) as events:
        produce(loaded, 1, 1, 20)
        with pytest.raises(LayoutError, match="map 'events': a record of 20 bytes, Event has 8"):
            events.drain()
        produce(loaded, 1, 1, 8)
        assert len(events.drain()) == 1


def test_waiting_ends_with_an_event_or_with_the_time(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer[Event]) as events:
        assert not events.wait(0)
        begin = time.monotonic()
        assert list(events.events(timeout=0.05)) == []
        assert 0.04 < time.monotonic() - begin < 2
        later = threading.Timer(0.05, produce, (loaded, 2, 1, 8))
        later.start()
        assert list(islice(events.events(timeout=30), 2)) == [Event(0, 1), Event(1, 1)]
        later.join()
        produce(loaded, 1, 1, 8)
        assert next(iter(events)) == Event(0, 1)


def test_select_and_asyncio_wait_for_events(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer[Event]) as events:
        assert select.select([events], [], [], 0) == ([], [], [])
        produce(loaded, 1, 4, 8)
        assert select.select([events], [], [], 0) == ([events], [], [])
        events.drain()

        async def first() -> list[Event]:
            loop = asyncio.get_running_loop()
            ready: asyncio.Future[list[Event]] = loop.create_future()
            loop.add_reader(events.fileno(), lambda: ready.done() or ready.set_result(events.drain()))
            loop.call_later(0.02, produce, loaded, 1, 5, 8)
            try:
                return await asyncio.wait_for(ready, 5)
            finally:
                loop.remove_reader(events.fileno())

        assert asyncio.run(first()) == [Event(0, 5)]


def test_a_producer_and_two_consumers_at_once(loaded: Object) -> None:
    with loaded.map("events", maps.RingBuffer) as events:
        got: list[bytes] = []
        done = threading.Event()

        def consume() -> None:
            while not done.is_set() or events.wait(0):
                got.extend(events.drain())

        consumers = [threading.Thread(target=consume) for _ in range(2)]
        for each in consumers:
            each.start()
        lost = sum(produce(loaded, 64, turn % 256, 20) for turn in range(300))
        done.set()
        for each in consumers:
            each.join()
        assert len(got) == 300 * 64 - lost
        assert all(len(set(record)) == 1 and len(record) == 20 for record in got)


def test_a_closed_ring_says_so() -> None:
    events = maps.RingBuffer[Event].create("kdmap_ring", 4096)
    events.close()
    events.close()
    assert repr(events) == "<RingBuffer kdmap_ring closed>"
    with pytest.raises(ClosedError):
        events.drain()


def test_a_ring_s_size_is_pages_to_a_power_of_two() -> None:
    with pytest.raises(KernelError, match="create map: kdmap_ring: Invalid argument"):
        maps.RingBuffer[Event].create("kdmap_ring", 5000)


# ---- ProgArray ----


def test_a_tail_call_lands_where_the_array_says(loaded: Object) -> None:
    jumps = loaded.map("jumps", maps.ProgArray)
    jump, landed = loaded.program("jump", Program), loaded.program("landed", Program)
    assert jump.run(bytes(64)).retval == 1
    jumps[2] = landed
    assert jump.run(bytes(64)).retval == 42
    assert list(jumps.ids()) == [2]
    assert repr(jumps) == "<ProgArray jumps programs 1/4>"
    jumps.update_many({0: landed, 1: landed})  # the kernel has no batch for these
    assert list(jumps.ids()) == [0, 1, 2]
    del jumps[2]
    assert jump.run(bytes(64)).retval == 1
    with pytest.raises(KeyNotFoundError, match="no such key in map 'jumps': 2"):
        del jumps[2]


def test_a_place_outside_the_array_is_refused(loaded: Object) -> None:
    jumps = loaded.map("jumps", maps.ProgArray)
    with pytest.raises(MapFullError, match="at most 4"):
        jumps.update_many((number, loaded.program("landed", Program)) for number in range(6))
    assert list(jumps.ids()) == [0, 1, 2, 3]


# ---- SockHash, SockMap ----


@pytest.fixture
def connections() -> Iterator[list[socket.socket]]:
    """Both ends of three connections."""
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        ends = []
        for _ in range(3):
            ends.append(opened.enter_context(socket.create_connection(server.getsockname())))
            ends.append(opened.enter_context(server.accept()[0]))
        yield ends


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def test_sockets_by_key(connections: list[socket.socket]) -> None:
    with maps.SockHash[u64].create("kdmap_socks", 8) as peers:
        peers[7] = connections[0]
        peers.update_many({8: connections[1], 9: connections[2]})
        assert (len(peers), set(peers), 8 in peers, 5 in peers) == (3, {7, 8, 9}, True, False)
        assert peers.cookie(9) == cookie(connections[2])
        assert repr(peers) == "<SockHash kdmap_socks u64->socket 3/8>"
        connections[0].close()
        assert set(peers) == {8, 9}  # closing takes a socket out
        del peers[8]
        for gone in (7, 8):
            with pytest.raises(KeyNotFoundError):
                peers.cookie(gone)
            with pytest.raises(KeyNotFoundError):
                del peers[gone]


def test_sockets_by_number(connections: list[socket.socket]) -> None:
    with maps.SockMap.create("kdmap_socks", 4) as numbered:
        numbered[2] = connections[0]
        assert numbered.cookie(2) == cookie(connections[0])
        with pytest.raises(MapFullError):
            numbered[4] = connections[1]


def test_only_connections_go_in() -> None:
    with maps.SockHash[u32].create("kdmap_socks", 4) as peers, open("/dev/null") as other:
        with pytest.raises(KernelError, match=r"write element: kdmap_socks\[1\]"):
            peers[1] = other
        with pytest.raises(LayoutError, match="socket cannot hold 'x'"):
            peers[1] = "x"  # type: ignore[assignment]


# ---- HashOfMaps, ArrayOfMaps ----

Table = maps.Array[u32]


def test_a_program_uses_the_table_that_is_put_in(loaded: Object) -> None:
    tables = loaded.map("tables", maps.HashOfMaps[u32, Table])
    total = loaded.program("sum", Program)
    with Table.create("kdmap_inner", 4) as table:
        table.update_many({0: 1, 1: 2, 3: 4})
        assert total.run(b"\7" + bytes(63)).retval == 2**32 - 2
        tables[7] = table
    assert total.run(b"\7" + bytes(63)).retval == 7  # being held there keeps it alive
    with tables[7] as held:
        held[2] = 100
    assert total.run(b"\7" + bytes(63)).retval == 107
    assert repr(tables) == "<HashOfMaps tables u32->Array[u32] 1/64>"


def test_maps_of_maps_are_mappings() -> None:
    with ExitStack() as made:
        tables = [made.enter_context(Table.create(f"kdmap_in{number}", 4)) for number in range(8)]
        outer = made.enter_context(maps.HashOfMaps[u32, Table].create("kdmap_outer", 16, inner=tables[0]))
        outer.update_many(dict(enumerate(tables)))
        assert set(outer) == set(range(8))
        ids = {}
        for number, table in outer.items():
            with table:
                ids[number] = table.info.id
        assert ids == {number: table.info.id for number, table in enumerate(tables)}
        assert "kdmap_in7 u32[4]" in outer._repr_html_()
        found = outer.lookup_many([1, 99])
        assert list(found) == [1]
        found[1].close()
        with next(iter(outer.values())) as one:
            assert one[0] == 0
        with outer.pop(3) as taken:
            assert taken.name == "kdmap_in3"
        assert 3 not in outer
        assert outer.delete_many(range(5)) == 4
        with pytest.raises(KeyNotFoundError):
            outer[0]


def test_an_array_of_maps_has_empty_places() -> None:
    with (
        Table.create("kdmap_in", 4) as table,
        maps.ArrayOfMaps[Table].create("kdmap_outer", 4, inner=table) as outer,
    ):
        assert len(outer) == 0
        outer[2] = table
        assert list(outer) == [2]
        with outer[2] as inner:
            inner[1] = 5
        assert table[1] == 5
        with pytest.raises(KeyNotFoundError):
            outer[1]
        del outer[2]
        assert not outer


def test_a_map_of_another_shape_does_not_go_in() -> None:
    with (
        Table.create("kdmap_in", 4) as table,
        maps.Hash[u32, u32].create("kdmap_other", 4) as other,
        maps.HashOfMaps[u32, Table].create("kdmap_outer", 4, inner=table) as outer,
    ):
        with pytest.raises(KernelError, match=r"write element: kdmap_outer\[1\]: Invalid argument"):
            outer[1] = other  # type: ignore[assignment]
        with pytest.raises(LayoutError, match=r"Array\[u32\] cannot hold 5"):
            outer[1] = 5  # type: ignore[assignment]
    with pytest.raises(TypeError, match="needs inner="):
        maps.HashOfMaps[u32, Table].create("kdmap_outer", 4)
