"""Services and backends drawn by chance, of a small world in which they meet each other."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from hypothesis import strategies as st

from k8sdatapath.model import Backend, BackendState, Exposure, FrontendKind, Protocol, Selection, Service
from tests.packets.world import PROTOCOLS, V4, WORLDS, World

SCTP = Protocol.SCTP
TIMEOUT = 100  # of affinity
BACKENDS = ("one", "two", "three", "four")
PODS = ("client", "one", "three")
PLACES = {
    V4.name: {"three": ("10.244.1.5", 8080), "four": ("10.244.2.6", 8081), "visitor": ("198.18.0.9", 0)},
    "IPv6": {
        "three": ("fd00:244:1::5", 8080),
        "four": ("fd00:244:2::6", 8081),
        "visitor": ("2001:db8:9::9", 0),
    },
}
RANGES = {
    V4.name: ("198.51.100.0/24", "10.244.0.0/16", "0.0.0.0/0"),
    "IPv6": ("2001:db8::/64", "fd00:244::/32", "::/0"),
}
KINDS = (
    FrontendKind.NODE_PORT,
    FrontendKind.LOAD_BALANCER,
    FrontendKind.EXTERNAL_IP,
    FrontendKind.HOST_PORT,
)


def place(world: World, name: str) -> tuple[str, int]:
    return PLACES[world.name].get(name) or world[name]


@st.composite
def backends(draw: Any, world: World, protocol: Protocol) -> list[Backend]:
    return [
        Backend(
            place(world, name)[0],
            80 if protocol == SCTP else place(world, name)[1],
            state=draw(st.sampled_from(list(BackendState))),
            weight=draw(st.sampled_from((1, 1, 1, 2, 3, 0))),
            cluster=draw(st.sampled_from((True, True, False))),
            local=name in PODS and draw(st.booleans()),
        )
        for name in draw(st.sets(st.sampled_from(BACKENDS), max_size=4))
    ]


@st.composite
def services(draw: Any) -> Service:
    world, index = draw(st.sampled_from(WORLDS)), draw(st.integers(0, 1))
    ports = dict.fromkeys(KINDS, 80 + index)
    ports |= {FrontendKind.NODE_PORT: 30080 + index, FrontendKind.HOST_PORT: 9000 + index}
    where = {FrontendKind.LOAD_BALANCER: "balancer", FrontendKind.EXTERNAL_IP: "external"}
    protocol, kinds = draw(st.sampled_from((*PROTOCOLS, SCTP))), KINDS
    if protocol == SCTP:  # which keeps its port, so it has one everywhere
        ports, kinds = dict.fromkeys(KINDS, 80), KINDS[:3]
    return Service(
        world.address(("service", "other")[index]),
        80,
        protocol,
        backends=draw(backends(world, protocol)),
        selection=draw(st.sampled_from(list(Selection))),
        exposed=[
            Exposure(kind, world.address(where.get(kind, "node")), ports[kind])
            for kind in draw(st.sets(st.sampled_from(kinds)))
        ],
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
        affinity_timeout=0 if protocol == SCTP else draw(st.sampled_from((0, TIMEOUT))),
        source_ranges=draw(st.sets(st.sampled_from(RANGES[world.name]).map(ip_network), max_size=2)),
    )
