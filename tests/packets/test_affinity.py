"""Clients that stay with their backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.model import Backend, BackendState, Exposure, FrontendKind, Selection, Service
from k8sdatapath.net.packet import tcp
from k8sdatapath.tables.affinity import AffinityKey, AffinityRow
from tests.packets.rig import Rig, let_clients_wait, rig
from tests.packets.world import TCP, WORLDS, World

TIMEOUT = 100
FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


def backends(world: World) -> list[Backend]:
    prefix = world.address("one")[:-1]
    return [Backend(f"{prefix}{last}", 8080) for last in ("5", "6", "7", "8", "9")]


def service(
    world: World,
    members: list[Backend] | None = None,
    *,
    name: str = "service",
    timeout: int = TIMEOUT,
    selection: Selection = Selection.RANDOM,
    external_local: bool = False,
) -> Service:
    return Service(
        *world[name],
        TCP,
        backends=backends(world) if members is None else members,
        selection=selection,
        affinity_timeout=timeout,
        exposed=[Exposure(FrontendKind.NODE_PORT, *world["node"])] if name == "service" else (),
        external_local=external_local,
    )


@pytest.fixture
def datapath() -> Iterator[Rig]:
    with rig("from_uplink", redirect=False) as made:
        yield made


class Client:
    """Connections from ports that nobody has used yet."""

    def __init__(self, datapath: Rig, world: World, address: str = "") -> None:
        self.datapath = datapath
        self.world = world
        self.address = address or world.address("client")
        self.port = 10000

    def dial(self, name: str = "service", *, port: int = 0) -> Backend:
        self.port += 1
        address, usual = self.world[name]
        sent = self.datapath.send(tcp(self.address, address, self.port, port or usual))
        assert sent.outcome == "TO_STACK"
        assert sent.packet.dport is not None
        return Backend(sent.packet.dst, sent.packet.dport)


@FAMILIES
@pytest.mark.parametrize("selection", list(Selection), ids=lambda selection: selection.name)
def test_a_client_stays_with_its_backend_on_all_frontends(
    datapath: Rig, world: World, selection: Selection
) -> None:
    datapath.services.upsert(service(world, selection=selection))
    client = Client(datapath, world)
    assert len({client.dial(name) for name in ["service", "node"] * 20}) == 1


@FAMILIES
def test_another_client_and_another_service_choose_for_themselves(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world), service(world, name="other"))
    client, prefix = Client(datapath, world), world.address("client")[:-1]
    first = client.dial()
    assert {Client(datapath, world, f"{prefix}{n}").dial() for n in range(10, 150)} == set(backends(world))
    assert len({client.dial("other") for _ in range(20)}) == 1
    assert client.dial() == first


@FAMILIES
def test_two_ports_of_one_service_may_lead_a_client_to_two_backends(datapath: Rig, world: World) -> None:
    first = service(world)
    second = Service(world.address("service"), 443, backends=backends(world), affinity_timeout=TIMEOUT)
    datapath.services.upsert(first, second)
    seen = set()
    for n in range(10, 200):  # one in five has one backend
        client = Client(datapath, world, f"{world.address('client')[:-1]}{n}")
        chosen = [client.dial(port=port) for port in (first.frontend.port, 443) * 3]
        assert len(set(chosen[::2])) == len(set(chosen[1::2])) == 1
        seen.add(chosen[0] == chosen[1])
    assert seen == {True, False}


@FAMILIES
def test_each_connection_renews_the_stay_and_silence_ends_it(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world))
    client = Client(datapath, world)
    first = client.dial()
    for _ in range(5):
        let_clients_wait(datapath.loaded, TIMEOUT - 10)
        assert client.dial() == first
    seen = set()
    for _ in range(120):
        let_clients_wait(datapath.loaded, TIMEOUT + 10)
        seen.add(client.dial())
    assert seen == set(backends(world))


@FAMILIES
def test_packets_of_a_connection_do_not_renew_the_stay(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world))
    address, port = world["service"]
    datapath.send(tcp(world.address("client"), address, 5, port))
    let_clients_wait(datapath.loaded, TIMEOUT + 10)
    datapath.send(tcp(world.address("client"), address, 5, port, "A"))
    pins = datapath.loaded.map("kd_affinity", maps.LRUHash[AffinityKey, AffinityRow])
    before = list(pins.values())
    datapath.send(tcp(world.address("client"), address, 5, port, "A"))
    assert list(pins.values()) == before


@FAMILIES
@pytest.mark.parametrize("how", ["gone", "leaving", "out of the set", "without weight"])
def test_a_backend_that_is_none_for_new_flows_loses_its_clients(
    datapath: Rig, world: World, how: str
) -> None:
    datapath.services.upsert(service(world))
    client = Client(datapath, world)
    first = client.dial()
    after = {
        "gone": [],
        "leaving": [evolve(first, state=BackendState.TERMINATING)],
        "out of the set": [evolve(first, cluster=False)],
        "without weight": [evolve(first, weight=0)],
    }[how]
    others = [backend for backend in backends(world) if backend != first]
    datapath.services.upsert(service(world, [*others, *after]))
    chosen = {client.dial() for _ in range(20)}
    assert len(chosen) == 1
    assert chosen <= set(others)


@FAMILIES
def test_a_stay_holds_in_the_set_that_is_asked(datapath: Rig, world: World) -> None:
    """From outside only the local backend will do, whichever the client had through the cluster IP."""
    local, *others = backends(world)
    datapath.services.upsert(service(world, [evolve(local, local=True), *others], external_local=True))
    for n in range(20):
        client = Client(datapath, world, f"{world.address('client')[:-1]}{n + 10}")
        client.dial("service")
        assert client.dial("node") == local


@FAMILIES
def test_affinity_that_is_switched_off_is_over(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world))
    client = Client(datapath, world)
    client.dial()
    datapath.services.upsert(service(world, timeout=0))
    assert {client.dial() for _ in range(120)} == set(backends(world))


@FAMILIES
def test_maglev_gives_a_client_one_backend_on_every_node(world: World) -> None:
    chosen: dict[int, list[Backend]] = {}
    for node_number in range(2):
        with rig("from_uplink", redirect=False) as node:
            node.services.upsert(service(world, selection=Selection.MAGLEV))
            for n in range(10, 30):
                client = Client(node, world, f"{world.address('client')[:-1]}{n}")
                client.port += 1000 * node_number
                chosen.setdefault(n, []).extend(client.dial() for _ in range(3))
    assert [len(set(dialled)) for dialled in chosen.values()] == [1] * 20
    assert {dialled[0] for dialled in chosen.values()} == set(backends(world))
