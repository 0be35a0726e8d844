"""``resolve`` names exactly those whom the programs choose, and how often: each slot of each set is asked.

It reads the tables. So each kind of frontend, policy, direction and set of backends is tried, against what
the production programs count for each backend when there is a packet for each slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from itertools import chain, combinations, count, product
from typing import Any

import pytest

from k8sdatapath.model import Backend, Exposure, Frontend, FrontendKind, Selection, Service
from k8sdatapath.net.packet import tcp
from k8sdatapath.programs import TC
from k8sdatapath.tables.conntrack import Tuple
from tests.packets.oracle import maglev_slot
from tests.packets.rig import Rig, rig
from tests.packets.world import TCP, WORLDS, World

PLACES = {
    FrontendKind.CLUSTER_IP: "service",
    FrontendKind.NODE_PORT: "node",
    FrontendKind.LOAD_BALANCER: "balancer",
    FrontendKind.EXTERNAL_IP: "external",
    FrontendKind.HOST_PORT: "mirror",
}
ROLES: tuple[dict[str, Any], ...] = (
    {"local": True},
    {},
    {"local": True, "cluster": False, "state": "terminating"},
    {"weight": 2},
    {"state": "terminating"},
)
TURNS = 60  # as often as any set of these has slots, and often enough for each
MAGLEV = 251  # slots of a set of two


@pytest.fixture(params=[False, True], ids=["from_pod", "from_uplink"])
def outside(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=WORLDS, ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    made: World = request.param
    return made


@pytest.fixture
def datapath(outside: bool) -> Iterator[Rig]:
    with rig("from_uplink" if outside else "from_pod", redirect=False) as made:
        yield made


def services(world: World, selection: Selection, roles: int) -> Iterator[Service]:
    """One with each subset of the roles, under each pair of policies."""
    prefix = "10.244.2." if ip_address(world.address("one")).version == 4 else "fd00:244:2::"
    everybody = [Backend(f"{prefix}{n}", 8080, **role) for n, role in enumerate(ROLES[:roles], 1)]
    exposed = [Exposure(kind, *world[name]) for kind, name in PLACES.items() if kind]
    subsets = chain.from_iterable(combinations(everybody, size) for size in range(roles + 1))
    for backends, internal, external in product(subsets, (False, True), (False, True)):
        yield Service(
            *world["service"],
            backends=backends,
            exposed=exposed,
            selection=selection,
            internal_local=internal,
            external_local=external,
        )


def counted(datapath: Rig, frontend: Frontend, frames: Sequence[bytes]) -> dict[str, int]:
    """How many flows each backend is given of those that these packets begin."""
    before = datapath.services.flows(frontend)
    datapath.loaded.program(datapath._entry, TC).run_many(frames)
    after = datapath.services.flows(frontend)
    datapath.flows.clear()
    given = {str(backend): flows - before.get(backend, 0) for backend, flows in after.items()}
    return {backend: flows for backend, flows in given.items() if flows}


def resolved(datapath: Rig, frontend: Frontend, outside: bool, flows: int) -> dict[str, int]:
    shares = datapath.services.resolve(frontend, outside=outside).shares
    return {str(backend): round(share * flows) for backend, share in shares.items()}


def first_packets(world: World) -> dict[Frontend, list[bytes]]:
    """To each frontend."""
    client, ports = world.address("client"), range(1000, 1000 + TURNS)
    return {
        Frontend(vip, port, TCP): [tcp(client, vip, sport, port) for sport in ports]
        for vip, port in map(world.__getitem__, PLACES.values())
    }


def prepare(datapath: Rig, service: Service) -> None:
    """All backends are pods of this node, which need no address of the node to be asked under."""
    for backend in service.backends:
        datapath.add_pod(str(backend.address))
    datapath.services.plan([service]).apply()


def test_in_turn_each_slot_is_who_is_named(datapath: Rig, world: World, outside: bool) -> None:
    frames = first_packets(world)
    tried = 0
    for service in services(world, Selection.ROUND_ROBIN, len(ROLES)):
        prepare(datapath, service)
        for frontend in service.frontends:
            expected = resolved(datapath, frontend, outside, TURNS)
            assert counted(datapath, frontend, frames[frontend]) == expected, (service, frontend)
            tried += bool(expected)
    assert tried > 400


def test_each_slot_of_a_hash_table_is_who_is_named(datapath: Rig, world: World, outside: bool) -> None:
    client = ip_address(world.address("client"))
    frames = {}
    for name in PLACES.values():
        vip, port = world[name]
        of_slot: dict[int, bytes] = {}
        for sport in count(1000):
            slot = maglev_slot(Tuple(client, ip_address(vip), sport, port, TCP), MAGLEV)
            of_slot.setdefault(slot, tcp(str(client), vip, sport, port))
            if len(of_slot) == MAGLEV:
                break
        frames[Frontend(vip, port, TCP)] = list(of_slot.values())
    for service in services(world, Selection.MAGLEV, 3):
        prepare(datapath, service)
        for frontend in service.frontends:
            expected = resolved(datapath, frontend, outside, MAGLEV)
            assert counted(datapath, frontend, frames[frontend]) == expected, (service, frontend)


def test_by_chance_nobody_else_is_chosen(datapath: Rig, world: World, outside: bool) -> None:
    frames = first_packets(world)
    for service in services(world, Selection.RANDOM, 3):
        prepare(datapath, service)
        for frontend in service.frontends:
            expected = resolved(datapath, frontend, outside, TURNS)
            found = counted(datapath, frontend, frames[frontend])
            assert found.keys() == expected.keys(), (service, frontend)
