"""Which backend a new flow gets: by chance, by Maglev the one that its hash names, or in turn the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath import maps
from k8sdatapath.model import Backend, Exposure, Frontend, FrontendKind, Selection, Service
from k8sdatapath.net.packet import tcp, udp
from k8sdatapath.tables.backends import BackendRow
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.sets import SetRow, SlotsBlock
from tests.packets.chance import is_even
from tests.packets.oracle import maglev_slot, murmur3
from tests.packets.rig import Rig, rig
from tests.packets.world import PROTOCOLS, TCP, UDP, V4, V6, WORLDS, World

PORT = 80
BACKENDS = {
    V4.name: [Backend(f"10.244.2.{n}", 8000 + n) for n in range(1, 8)],
    V6.name: [Backend(f"fd00:244:2::{n}", 8000 + n) for n in range(1, 8)],
}


def service(world: World, protocol: int, selection: Selection) -> Service:
    return Service(
        world.address("service"), PORT, protocol, backends=BACKENDS[world.name], selection=selection
    )


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_chance_is_even(world: World) -> None:
    backends = BACKENDS[world.name]
    flows = 4000
    with rig(redirect=False) as datapath:
        datapath.services.upsert(service(world, TCP, Selection.RANDOM))
        chosen: Counter[Backend] = Counter()
        client, vip = world.address("client"), world.address("service")
        for sport in range(10000, 10000 + flows):
            packet = datapath.send(tcp(client, vip, sport, PORT)).packet
            chosen[Backend(packet.dst, packet.dport)] += 1
        counted = datapath.services.flows(Frontend(vip, PORT, TCP))
    assert set(chosen) == set(backends)
    assert is_even(chosen.values()), chosen
    assert counted == chosen


def turns(datapath: Rig, world: World, flows: int, start: int = 10000, to: str = "service") -> list[Backend]:
    """Who is given the next flows."""
    client, (vip, port) = world.address("client"), world[to]
    packets = [datapath.send(tcp(client, vip, sport, port)).packet for sport in range(start, start + flows)]
    return [Backend(packet.dst, packet.dport) for packet in packets]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_in_round_robin_each_has_its_turn(world: World) -> None:
    backends = BACKENDS[world.name]
    with rig(redirect=False) as datapath:
        datapath.services.upsert(service(world, TCP, Selection.ROUND_ROBIN))
        assert turns(datapath, world, 3 * len(backends)) == 3 * backends
        assert turns(datapath, world, 3, start=10000) == backends[:3]  # segments of flows take no turn
        assert turns(datapath, world, 2, start=20000) == backends[:2]


def test_in_round_robin_weights_are_shares_evenly_spread() -> None:
    one, two, none = (Backend(f"10.244.2.{n}", 80, weight=w) for n, w in ((1, 6), (2, 2), (3, 0)))
    weighted = Service(*V4["service"], backends=[one, two, none], selection=Selection.ROUND_ROBIN)
    with rig(redirect=False) as datapath:
        datapath.services.upsert(weighted)
        places = [backend.address for backend in turns(datapath, V4, 80)]
    assert places == [each.address for each in (one, one, two, one)] * 20


def test_round_robin_has_its_turns_at_each_frontend_and_in_each_set() -> None:
    here = Backend(*V4["one"], local=True)
    exposed = [Exposure(FrontendKind.NODE_PORT, *V4["node"])]
    both = Service(
        *V4["service"],
        backends=[here, Backend(*V4["two"])],
        exposed=exposed,
        external_local=True,
        selection="round_robin",
    )
    with rig("from_uplink", redirect=False) as datapath:
        datapath.services.upsert(both)
        assert {backend.address for backend in turns(datapath, V4, 5, to="node")} == {here.address}
        datapath.add_pod(V4.address("one"))
        datapath.add_pod(V4.address("two"))
        came = Counter(backend.address for backend in turns(datapath, V4, 40, start=20000))
        assert set(came.values()) == {20}


def test_round_robin_goes_on_when_backends_change() -> None:
    backends = BACKENDS["IPv4"]
    with rig(redirect=False) as datapath:
        for count in (3, 2, 4):
            few = evolve(service(V4, TCP, Selection.ROUND_ROBIN), backends=backends[:count])
            datapath.services.upsert(few)
            came = turns(datapath, V4, 4 * count, start=10000 * count)
            assert Counter(came) == dict.fromkeys(backends[:count], 4)
        assert few in datapath.services.dump()


def test_only_the_first_packet_of_a_flow_is_counted() -> None:
    with rig() as datapath:
        datapath.services.upsert(V4.service("service", UDP, ["one"]))
        for _ in range(5):
            datapath.send(V4.frame("client", "service", UDP))
        datapath.send(V4.frame("one", "client", UDP))
        assert list(datapath.services.flows(Frontend(*V4["service"], UDP)).values()) == [1]


class Maglev:
    """Maglev services in both families and protocols, and what their tables say of a flow."""

    def __init__(self, datapath: Rig) -> None:
        self.datapath = datapath
        self.sets = datapath.loaded.map("kd_sets", maps.Array[SetRow])
        self.slots = datapath.loaded.map("kd_slots", maps.Array[SlotsBlock])
        self.backends = datapath.loaded.map("kd_backends", maps.Array[BackendRow])
        self.numbers = {}
        for number, (world, protocol) in enumerate((w, p) for w in WORLDS for p in PROTOCOLS):
            datapath.services.upsert(service(world, protocol, Selection.MAGLEV))
            self.numbers[world.name, protocol] = number

    def backend_of(self, world: World, protocol: int, client: str, sport: int) -> Backend:
        """What the oracle says, from the tables as they stand in the kernel."""
        run = self.sets[self.numbers[world.name, protocol] * 3]
        address = IPv4Address if world is V4 else IPv6Address
        flow = Tuple(address(client), address(world.address("service")), sport, PORT, protocol)
        slot = run.offset + maglev_slot(flow, run.count)
        row = self.backends[self.slots[slot // 16].backend[slot % 16] & 0x3FFFFF]
        return Backend(row.addr, row.port)


@pytest.fixture(scope="module")
def maglev() -> Iterator[Maglev]:
    with rig(redirect=False) as datapath:
        yield Maglev(datapath)


@pytest.mark.parametrize(("text", "hash"), [(b"", 0), (b"hello, world", 0x149BBB7F)])
def test_the_oracles_hash_is_the_published_one(text: bytes, hash: int) -> None:
    assert murmur3(text) == hash


@settings(max_examples=300)
@given(
    world=st.sampled_from(WORLDS),
    protocol=st.sampled_from(PROTOCOLS),
    host=st.integers(1, 0xFFFE),
    sport=st.integers(1, 65535),
)
def test_kernel_and_oracle_name_the_same_backend(
    maglev: Maglev, world: World, protocol: int, host: int, sport: int
) -> None:
    client = f"172.16.{host >> 8}.{host & 255}" if world is V4 else f"2001:db8::{host:x}"
    build = tcp if protocol == TCP else udp
    packet = maglev.datapath.send(build(client, world.address("service"), sport, PORT)).packet
    assert Backend(packet.dst, packet.dport) == maglev.backend_of(world, protocol, client, sport)


def test_maglev_spreads_evenly(maglev: Maglev) -> None:
    flows = 3500
    chosen = Counter(
        maglev.backend_of(V4, TCP, V4.address("client"), sport) for sport in range(20000, 20000 + flows)
    )
    assert set(chosen) == set(BACKENDS[V4.name])
    share = flows / len(chosen)
    assert all(abs(count - share) < 0.15 * share for count in chosen.values()), chosen


def test_a_forgotten_connection_meets_its_backend_again(maglev: Maglev) -> None:
    datapath = maglev.datapath
    client, vip = "172.17.0.1", V4.address("service")
    for sport in range(30000, 30050):
        first = datapath.send(tcp(client, vip, sport, PORT, "S")).packet
        datapath.flows.delete_many(list(datapath.flows))
        assert datapath.send(tcp(client, vip, sport, PORT, "PA")).packet.dst == first.dst


def test_a_slot_that_names_nobody_drops_and_says_so() -> None:
    with rig() as datapath:
        datapath.services.upsert(V4.service("service", TCP, ["one"]))
        slots = datapath.loaded.map("kd_slots", maps.Array[SlotsBlock])
        block = next(n for n, block in enumerate(slots) if any(block.backend))
        stale = tuple(id and id + (1 << 22) for id in slots[block].backend)  # of the next generation
        slots[block] = SlotsBlock(stale)
        assert datapath.send(V4.frame("client", "service", TCP)).outcome == "DROP_STALE_SLOT"
        assert not dict(datapath.flows)
