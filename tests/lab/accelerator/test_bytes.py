"""What is handed over arrives as what is sent: whole, in order, and no sooner than it may."""

from __future__ import annotations

import array
import fcntl
import random
import select
import socket
import struct
import termios
import threading
from contextlib import suppress

import pytest

from k8sdatapath.lab.lab import LabNode
from tests.support.acceleration import pair, pod, since
from tests.support.connections import Connection, connected, read
from tests.support.watching import wait

pytestmark = pytest.mark.lab


def unread(sock: socket.socket) -> int:
    """What FIONREAD says."""
    there = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, there)
    return there[0]


def test_long_transfers_are_whole_in_both_directions_at_once(node: LabNode) -> None:
    """Pieces of all sizes, readers that pause: some are handed over, others not, and all are in order."""
    before = node.accelerator.stats()
    failures: list[str] = []

    def write(sock: socket.socket, seed: int) -> None:
        chance, data = random.Random(seed), memoryview(random.Random(seed).randbytes(6 << 20))
        while data:
            size = chance.choice((1, 100, 1400, 40_000, 300_000))
            sock.sendall(data[:size])
            data = data[size:]
        sock.shutdown(socket.SHUT_WR)

    def check(sock: socket.socket, seed: int) -> None:
        chance, got = random.Random(~seed), bytearray()
        slow = threading.Event()
        while piece := sock.recv(chance.choice((10, 5000, 1 << 20))):
            got += piece
            if not chance.randrange(400):
                slow.wait(0.02)
        if got != random.Random(seed).randbytes(6 << 20):
            failures.append(f"{seed}: {len(got)} bytes")

    def run(made: Connection, seed: int) -> None:
        ways = ((made.client, made.server, seed), (made.server, made.client, seed + 1))
        each = [threading.Thread(target=write, args=(way[0], way[2])) for way in ways]
        each += [threading.Thread(target=check, args=(way[1], way[2])) for way in ways]
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()

    with (
        connected(pod(node, "client"), pod(node, "web")) as one,
        connected(pod(node, "web"), pod(node, "other"), pod(node, "other").address6) as two,
    ):
        both = [threading.Thread(target=run, args=(made, seed)) for made, seed in ((one, 10), (two, 20))]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert failures == []
    counted = since(node, before)
    assert counted["handed"] > 0
    assert counted["full"] > 0
    assert counted["behind"] > 0
    assert "shut" not in counted


def test_a_reader_that_sleeps_is_waited_for(node: LabNode) -> None:
    """Nothing piles up: the writer is told to wait as ever, and all that it wrote arrives in order."""
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.client.setblocking(False)
        data = random.Random(1).randbytes(64 << 20)
        sent = 0
        with suppress(BlockingIOError):
            while sent < len(data):
                sent += made.client.send(data[sent : sent + 100_000])
        assert sent < len(data) // 2
        assert read(made.server, sent) == data[:sent]
        made.client.settimeout(10)
        handed = pair(node).client.messages
        made.say(b"awake")  # the kernel does not ask again after what it could send in part only
        made.say(b"again")
        assert pair(node).client.messages == handed + 1


def test_messages_of_one_byte_do_not_pile_up(node: LabNode) -> None:
    """The kernel's memory for one is a thousand times its size: nobody fills it with those."""
    with connected(pod(node, "client"), pod(node, "web")) as made:
        for number in range(3):
            for _ in range(1000):
                made.client.sendall(b"%d" % number)
            assert pair(node).client.messages <= 257 * (number + 1)
            assert read(made.server, 1000) == b"%d" % number * 1000
            handed = pair(node).client.messages
            made.say(b"!")
            assert pair(node).client.messages == handed + 1


def test_who_wants_more_at_once_is_woken_up_by_that(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
        poller = select.poll()
        poller.register(made.server, select.POLLIN)
        made.client.sendall(b"12345")
        assert poller.poll(50) == []
        made.client.sendall(b"67890")
        assert poller.poll(10_000)
        assert made.server.recv(100) == b"1234567890"
        made.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        made.say(b"!")
        assert pair(node).client.messages == 1


def test_both_ways_end_in_one_queue(node: LabNode) -> None:
    """What was handed over, and behind it what went through the stack: all of it is counted, and in order."""
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.client.sendall(b"handed over, ")
        made.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
        made.client.sendall(b"by the stack, ")
        made.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        made.client.sendall(b"behind that")
        wait(lambda: unread(made.server) == 38)
        assert (pair(node).client.messages, pair(node).client.others) == (1, 2)
        assert read(made.server, 38) == b"handed over, by the stack, behind that"
        assert unread(made.server) == 0
        made.say(b"!")
        assert pair(node).client.messages == 2


def test_half_of_it_is_closed(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.client.sendall(b"the last words")
        made.client.shutdown(socket.SHUT_WR)
        assert read(made.server, 100) == b"the last words"
        with pytest.raises(BrokenPipeError):
            made.client.sendall(b"more")
        data = bytes(200_000)
        threading.Thread(target=made.server.sendall, args=(data,)).start()
        assert read(made.client, len(data)) == data
        made.server.shutdown(socket.SHUT_WR)
        assert made.client.recv(1) == b""


def test_the_end_comes_after_what_was_said_before(node: LabNode) -> None:
    for _ in range(50):
        with connected(pod(node, "client"), pod(node, "web")) as made:
            made.client.sendall(b"a" * 5000)
            made.client.close()
            assert read(made.server, 10_000) == b"a" * 5000


def test_who_talks_to_the_dead_is_told(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.say(b"alive")
        made.server.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            wait(lambda: made.client.sendall(b"are you there?"))


def test_a_reset_is_one(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.say(b"alive")
        made.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.server.close()
        with pytest.raises(ConnectionResetError):
            made.client.recv(1)


def test_pollers_and_counters_of_bytes_see_what_was_handed_over(node: LabNode) -> None:
    with connected(pod(node, "client"), pod(node, "web")) as made, select.epoll() as poller:
        poller.register(made.server, select.EPOLLIN | select.EPOLLET)
        made.server.setblocking(False)
        for size in (1, 1000, 70_000):
            assert poller.poll(0) == []
            made.client.sendall(bytes(size))
            assert poller.poll(5) == [(made.server.fileno(), select.EPOLLIN)]
            wait(lambda size=size: unread(made.server) == size)
            assert made.server.recv(10, socket.MSG_PEEK) == bytes(min(size, 10))
            assert read(made.server, size) == bytes(size)
            with pytest.raises(BlockingIOError):
                made.server.recv(1)
            poller.poll(0)
