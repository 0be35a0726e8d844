"""The places that packets go between, in each family, and packets between them."""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.model import Backend, BackendState, Protocol, Selection, Service
from k8sdatapath.net import packet

TCP, UDP = Protocol.TCP, Protocol.UDP


@frozen
class World:
    """Where everybody is: addresses by name. ``client``, ``one`` and ``two`` are pods."""

    name: str
    places: dict[str, tuple[str, int]]

    def __getitem__(self, name: str) -> tuple[str, int]:
        return self.places[name]

    def address(self, name: str) -> str:
        return self.places[name][0]

    def service(
        self,
        name: str,
        protocol: Protocol,
        backends: list[str],
        *,
        leaving: tuple[str, ...] = (),
        selection: Selection = Selection.RANDOM,
    ) -> Service:
        address, port = self[name]
        states = [BackendState.TERMINATING if b in leaving else BackendState.ACTIVE for b in backends]
        made = [Backend(*self[b], state=state) for b, state in zip(backends, states, strict=True)]
        return Service(address, port, protocol, backends=made, selection=selection)

    def frame(
        self, src: str, dst: str, protocol: Protocol, flags: str = "S", payload: bytes = b"", **more: object
    ) -> bytes:
        (src_address, sport), (dst_address, dport) = self[src], self[dst]
        if protocol is TCP:
            return packet.tcp(src_address, dst_address, sport, dport, flags, payload, **more)  # type: ignore[arg-type]
        return packet.udp(src_address, dst_address, sport, dport, payload, **more)  # type: ignore[arg-type]


V4 = World(
    "IPv4",
    {
        "client": ("10.244.1.2", 40000),
        "service": ("10.96.0.10", 80),
        "other": ("10.96.0.11", 80),
        "mirror": ("10.96.0.10", 8080),
        "one": ("10.244.1.3", 8080),
        "two": ("10.244.1.4", 8080),
        "stranger": ("198.51.100.7", 443),
        "node": ("192.0.2.11", 30080),
        "uplink": ("192.0.2.1", 40000),
        "balancer": ("203.0.113.80", 80),
        "external": ("203.0.113.81", 80),
    },
)
V6 = World(
    "IPv6",
    {
        "client": ("fd00:244:1::2", 40000),
        "service": ("fd00:96::10", 80),
        "other": ("fd00:96::11", 80),
        "mirror": ("fd00:96::10", 8080),
        "one": ("fd00:244:1::3", 8080),
        "two": ("fd00:244:1::4", 8080),
        "stranger": ("2001:db8::7", 443),
        "node": ("2001:db8:2::11", 30080),
        "uplink": ("2001:db8:1::1", 40000),
        "balancer": ("2001:db8:3::80", 80),
        "external": ("2001:db8:3::81", 80),
    },
)
WORLDS = (V4, V6)
PROTOCOLS = (TCP, UDP)
