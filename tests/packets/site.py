"""A program of a node alone in a namespace, with a pod and a service, and what it tells of packets."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from unittest.mock import patch

from k8sdatapath import maps
from k8sdatapath.datapath.masquerader import Masquerader
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.layout import addr
from k8sdatapath.model import Masquerade
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import ConfigValue, Object, ObjectSpec
from k8sdatapath.programs import TC
from k8sdatapath.tables.begun import BEGUN_PAIRS
from k8sdatapath.tables.endpoints import EndpointRow
from tests.packets.listener import Listener
from tests.packets.rig import HOST_MAC, POD_MAC, SIZES
from tests.packets.world import TCP, UDP, V4, V6

DEVICE = 1  # where all happens: the loopback device
POD, POD6 = V4.address("client"), V6.address("client")


class Site:
    """A program of its own in a namespace of its own, and what it tells."""

    def __init__(self, own: ExitStack, netns: NetNs) -> None:
        self._own, self._netns = own, netns

    def load(self, name: str, given: dict[str, object] | None = None, **config: ConfigValue) -> Object:
        """Pods, and a service that leads to one of them."""
        spec = ObjectSpec.from_file(name)
        told = {"redirect": False, "events": True} | config
        sizes = SIZES | {"kd_begun": BEGUN_PAIRS if config.get("masquerade") else 1}
        spec = spec.with_maps(**{m: n for m, n in sizes.items() if m in spec.maps})
        spec = spec.with_config(**{key: value for key, value in told.items() if key in spec.config})
        with patch.object(ObjectSpec, "check_map"):
            self.loaded = self._own.enter_context(spec.load(reuse=given or {}))
        self.listener = Listener(self.loaded)
        pods = self.loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        row = EndpointRow(DEVICE, 300, POD_MAC, HOST_MAC)
        pods.update_many({ip_address(each): row for each in (POD, POD6)})
        if "kd_frontends" in spec.maps:
            self.services = self._own.enter_context(ServiceTable.bind(self.loaded))
            self.services.upsert(V4.service("service", TCP, ["one"]), V4.service("service", UDP, ["one"]))
        return self.loaded

    def send(self, entry: str, *frames: bytes, came_through: int = DEVICE) -> None:
        context = struct.pack("=36xII148x", came_through, DEVICE)
        program = self.loaded.program(entry, TC)
        for frame in frames:
            self._netns.call(lambda frame=frame: program.run(frame, ctx=context))

    def masquerade(self, **wanted: object) -> None:
        self.load("host", masquerade=True)
        masquerader = self._own.enter_context(Masquerader.bind(self.loaded, netns=self._netns))
        masquerader.plan(Masquerade(devices="lo", **wanted)).apply()  # type: ignore[arg-type]


@contextmanager
def lone_netns() -> Iterator[NetNs]:
    def wire() -> None:
        with Netlink() as net:
            net.set_up("lo")

    with NetNs.create(f"kdevents-{os.getpid()}") as made:
        made.call(wire)
        yield made
