"""Conversations with services, packet by packet: who gets what, and as whose it arrives.

A line is a packet and what becomes of it::

    client -> service [S]     TO_POD client -> one

The client sends a SYN to the service; the program puts it into a pod, addressed to backend one. Without the
second half the packet has to be left as it was. Lines without an arrow are things that happen in between.
``client*`` is the client under another port, the one that its packet was given first. In UDP the flags mean
nothing. Every packet that comes out has right checksums, and is one hop older if it
was delivered directly.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from attrs import frozen

from k8sdatapath import programs
from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.model import Backend, Frontend, Protocol, Service
from k8sdatapath.net.packet import parse, tcp
from k8sdatapath.tables.conntrack import FlowFlags
from tests.packets.rig import HOST_MAC, POD_MAC, Rig, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, WORLDS, World


@frozen
class Conversation:
    says: str
    script: str
    protocols: tuple[Protocol, ...] = PROTOCOLS


def tcp_only(says: str, script: str) -> Conversation:
    return Conversation(says, script, (TCP,))


def udp_only(says: str, script: str) -> Conversation:
    return Conversation(says, script, (UDP,))


CONVERSATIONS = [
    Conversation(
        "a new flow goes to a backend, whose answers come from the service",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        one -> client [SA]      TO_POD service -> client
        client -> service [A]   TO_POD client -> one
        one -> client [A]       TO_POD service -> client
        """,
    ),
    Conversation(
        "what is addressed to no service is left alone",
        """
        service has one
        client -> stranger [S]  PASS
        client -> one [S]       PASS
        one -> client [SA]      PASS
        """,
    ),
    Conversation(
        "a flow stays with its backend when others join",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        service has one, two
        client -> service [A]   TO_POD client -> one
        client -> service [A]   TO_POD client -> one
        client -> service [A]   TO_POD client -> one
        """,
    ),
    Conversation(
        "a flow stays with a backend that is terminating",
        """
        service has one, two leaving
        client -> service [S]   TO_POD client -> one
        service has one leaving, two
        client -> service [A]   TO_POD client -> one
        client -> service [S]   TO_POD client -> one
        """,
    ),
    Conversation(
        "a pod that meets itself behind a service meets the service's address",
        """
        service has one
        one -> service [S]      TO_POD mirror -> one
        one -> mirror [SA]      TO_POD service -> one
        one -> service [A]      TO_POD mirror -> one
        client -> service [S]   TO_POD client -> one
        one -> client [SA]      TO_POD service -> client
        """,
    ),
    Conversation(
        "one client port at two services with one backend: the second flow gets another port there",
        """
        service has one
        other has one
        client -> service [S]   TO_POD client -> one
        client -> other [S]     TO_POD client* -> one
        one -> client [SA]      TO_POD service -> client
        one -> client* [SA]     TO_POD other -> client
        client -> service [A]   TO_POD client -> one
        client -> other [A]     TO_POD client* -> one
        """,
    ),
    tcp_only(
        "the second service gets the port once the client has closed the first connection",
        """
        service has one
        other has one
        client -> service [S]   TO_POD client -> one
        client -> service [FA]  TO_POD client -> one
        client -> other [S]     TO_POD client -> one
        one -> client [SA]      TO_POD other -> client
        client -> service [A]   TO_POD client* -> one
        """,
    ),
    tcp_only(
        "the second service gets the port once the backend has reset the first connection",
        """
        service has one
        other has one
        client -> service [S]   TO_POD client -> one
        one -> client [RA]      TO_POD service -> client
        client -> other [S]     TO_POD client -> one
        one -> client [SA]      TO_POD other -> client
        """,
    ),
    Conversation(
        "a backend that is a client itself from the very port it serves on keeps that flow",
        """
        client has two
        one -> client [S]       TO_POD one -> two
        service has one
        client -> service [S]   TO_POD client* -> one
        two -> one [SA]         TO_POD client -> one
        one -> client* [SA]     TO_POD service -> client
        """,
    ),
    tcp_only(
        "an open connection keeps its port, however long it is silent",
        """
        service has one
        other has one
        client -> service [S]   TO_POD client -> one
        time passes
        client -> other [S]     TO_POD client* -> one
        """,
    ),
    udp_only(
        "the second service gets the port once the first flow has been silent for long",
        """
        service has one
        other has one
        client -> service       TO_POD client -> one
        time passes
        client -> other         TO_POD client -> one
        one -> client           TO_POD other -> client
        """,
    ),
    tcp_only(
        "a SYN that is sent again goes where it went before",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        service has one, two
        client -> service [S]   TO_POD client -> one
        client -> service [S]   TO_POD client -> one
        client -> service [S]   TO_POD client -> one
        client -> service [S]   TO_POD client -> one
        """,
    ),
    tcp_only(
        "a connection outlives its backend's membership; the next one from the same port does not",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        service has two
        client -> service [A]   TO_POD client -> one
        one -> client [A]       TO_POD service -> client
        client -> service [S]   TO_POD client -> two
        two -> client [SA]      TO_POD service -> client
        """,
    ),
    tcp_only(
        "a connection outlives its service; a new one does not begin",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        service is removed
        client -> service [A]   TO_POD client -> one
        one -> client [A]       TO_POD service -> client
        client -> service [S]   PASS
        """,
    ),
    tcp_only(
        "a SYN after the client's FIN begins a new connection",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        client -> service [FA]  TO_POD client -> one
        service has one leaving, two
        client -> service [A]   TO_POD client -> one
        client -> service [S]   TO_POD client -> two
        two -> client [SA]      TO_POD service -> client
        """,
    ),
    tcp_only(
        "a SYN after the backend's RST begins a new connection",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        one -> client [RA]      TO_POD service -> client
        service has one leaving, two
        client -> service [S]   TO_POD client -> two
        """,
    ),
    tcp_only(
        "a connection that nobody remembers is taken up in the middle",
        """
        service has one
        client -> service [A]   TO_POD client -> one
        one -> client [RA]      TO_POD service -> client
        """,
    ),
    tcp_only(
        "a reset or a SYN-ACK that belongs to nothing begins nothing",
        """
        service has one
        client -> service [R]   DROP_NO_FLOW
        client -> service [RA]  DROP_NO_FLOW
        client -> service [SA]  DROP_NO_FLOW
        there are no flows
        """,
    ),
    udp_only(
        "datagrams leave a backend that is gone, and answers of the next one come from the service",
        """
        service has one
        client -> service       TO_POD client -> one
        service has two
        client -> service       TO_POD client -> two
        two -> client           TO_POD service -> client
        """,
    ),
    udp_only(
        "datagrams to a service that has lost all its backends are rejected",
        """
        service has one
        client -> service       TO_POD client -> one
        service has nobody
        client -> service       REJECT_NO_BACKEND refused
        there are no flows
        one -> client           TO_POD service -> client
        time passes
        one -> client           PASS
        """,
    ),
    udp_only(
        "datagrams to a service that is gone are left alone",
        """
        service has one
        client -> service       TO_POD client -> one
        service is removed
        client -> service       PASS
        there are no flows
        one -> client           TO_POD service -> client
        time passes
        one -> client           PASS
        """,
    ),
    Conversation(
        "a flow that lost its reply entry has it again a second later",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        the reply entry is lost
        time passes
        client -> service [A]   TO_POD client -> one
        one -> client [A]       TO_POD service -> client
        """,
    ),
    Conversation(
        "a flow that lost its original entry has it again with the next answer",
        """
        service has one
        client -> service [S]   TO_POD client -> one
        one -> client [SA]      TO_POD service -> client
        service has one leaving, two
        the original entry is lost
        time passes
        one -> client [A]       TO_POD service -> client
        client -> service [A]   TO_POD client -> one
        """,
    ),
]

CASES = [
    pytest.param(
        conversation.script, world, protocol, id=f"{conversation.says}, {world.name} {protocol.name}"
    )
    for conversation in CONVERSATIONS
    for world in WORLDS
    for protocol in conversation.protocols
]
LINE = re.compile(r"(\w+) -> (\w+\*?)(?: \[(\w+)\])? +(\w+)(?: (\w+\*?) -> (\w+)|( refused))?$")


@pytest.mark.parametrize("entry", ["from_pod", "from_uplink"])
@pytest.mark.parametrize(("script", "world", "protocol"), CASES)
def test_conversation(script: str, world: World, protocol: Protocol, entry: str) -> None:
    with rig(entry) as datapath:
        for pod in ("client", "one", "two"):
            datapath.add_pod(world.address(pod))
        for line in filter(None, map(str.strip, script.splitlines())):
            packet = LINE.match(line)
            if packet:
                world = send(datapath, world, protocol, packet)
            else:
                happen(datapath, world, protocol, line)


def send(datapath: Rig, world: World, protocol: Protocol, line: re.Match[str]) -> World:
    """The world that it returns knows the port that the packet was given, if any."""
    src, dst, flags, outcome, new_src, new_dst, refused = line.groups()
    frame = world.frame(src, dst, protocol, flags or "", b"payload")
    sent = datapath.send(frame)
    assert sent.outcome == outcome, line.string
    if refused:
        assert str(sent.packet.src) == world.address(dst), line.string
        return world
    if new_src is None:
        assert sent.frame == frame, line.string
        return world
    if new_src == "client*" and new_src not in world.places:
        assert sent.packet.sport is not None
        world = World(world.name, {**world.places, new_src: (world.address(src), sent.packet.sport)})
        assert world[new_src] != world["client"], line.string
    (src_address, sport), (dst_address, dport) = world[new_src], world[new_dst]
    before, after = parse(frame), sent.packet
    assert (str(after.src), after.sport) == (src_address, sport), line.string
    assert (str(after.dst), after.dport) == (dst_address, dport), line.string
    assert (after.flags, after.payload) == (before.flags, before.payload)
    assert after.checksums_ok
    assert (after.ttl, after.src_mac, after.dst_mac) == (before.ttl - 1, HOST_MAC, POD_MAC)
    return world


def happen(datapath: Rig, world: World, protocol: Protocol, line: str) -> None:
    match line.split(maxsplit=2):
        case [service, "has", who]:
            backends = [] if who == "nobody" else [name.split()[0] for name in who.split(", ")]
            leaving = tuple(name.split()[0] for name in who.split(", ") if name.endswith(" leaving"))
            datapath.services.upsert(world.service(service, protocol, backends, leaving=leaving))
        case [service, "is", "removed"]:
            datapath.services.remove(Frontend(*world[service], protocol))
        case ["time", "passes"]:
            datapath.let_time_pass()
        case ["there", "are", "no flows"]:
            assert not list(ConntrackTable.bind({"kd_conntrack": datapath.flows}).flows())
        case ["the", which, "entry is lost"]:
            reply = which == "reply"
            for key, row in dict(datapath.flows).items():
                if bool(row.flags & FlowFlags.REPLY) is reply:
                    del datapath.flows[key]
        case _:
            raise ValueError(line)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_a_flow_tells_its_story(world: World) -> None:
    with rig() as datapath:
        datapath.services.upsert(world.service("service", TCP, ["one"]))
        datapath.send(world.frame("client", "service", TCP, "S"))
        original, reply = story(datapath)
        assert (original.packets, original.flags) == (1, 0)
        assert (reply.packets, reply.flags, reply.last_seen) == (0, FlowFlags.REPLY, 0)

        datapath.send(world.frame("one", "client", TCP, "SA"))
        datapath.send(world.frame("client", "service", TCP, "A"))
        datapath.send(world.frame("one", "client", TCP, "FA"))
        datapath.send(world.frame("client", "service", TCP, "R"))
        original, reply = story(datapath)
        assert (original.packets, original.flags) == (3, FlowFlags.SEEN_REPLY | FlowFlags.RST)
        assert (reply.packets, reply.flags) == (2, FlowFlags.REPLY | FlowFlags.FIN)
        assert original.backend == reply.backend
        assert reply.last_seen > 0


def story(datapath: Rig) -> list:
    return sorted(dict(datapath.flows).values(), key=lambda row: row.flags & FlowFlags.REPLY)


def test_every_packet_is_counted_whichever_cpu_it_is_on() -> None:
    """The service is its own backend, so that a packet is the same after each of its runs."""
    runs = 20_000
    with rig(redirect=False) as datapath:
        datapath.services.upsert(Service(*V4["service"], backends=[Backend(*V4["service"])]))
        frame = V4.frame("client", "service", TCP, "A")
        program = datapath.loaded.program("from_pod", programs.TC)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: program.run(frame, repeat=runs), range(4)))
        original, _reply = story(datapath)
        assert original.packets == 4 * runs


def test_no_packet_is_lost_while_backends_come_and_go() -> None:
    with rig(redirect=False) as datapath:
        services, program = datapath.services, datapath.loaded.program("from_pod", programs.TC)
        sets = [V4.service("service", TCP, names) for names in (["one"], ["two"], ["one", "two"])]
        services.upsert(sets[0])
        client, service = V4["client"][0], V4["service"]
        changes = 0
        with ThreadPoolExecutor(1) as pool:
            frames = (tcp(client, service[0], sport, service[1]) for sport in range(10000, 14000))
            clients = pool.submit(lambda: [program.run(frame) for frame in frames])
            while not clients.done():
                services.upsert(sets[changes % 3])
                changes += 1
        outcomes = {name: counter.packets for name, counter in datapath.read_counters().items()}
        assert outcomes == {"TO_STACK": 4000}
        assert changes > 100
