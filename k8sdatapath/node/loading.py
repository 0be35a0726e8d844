"""The objects of a node: which, with which settings, over which maps."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from k8sdatapath import features
from k8sdatapath.errors import KernelError
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node.config import POLICY_MAPS, NodeConfig
from k8sdatapath.objects import ConfigValue, Object, ObjectSpec
from k8sdatapath.programs.base import device_index, in_netns

__all__ = ["cookie", "load", "settings", "specs"]

_EVENTS = 1 << 22
"""Bytes of events that nobody has read yet: some 25,000, at 500,000 a second what comes in 50 ms."""
_MESSAGES = 1 << 20
"""Bytes of messages of name servers that nobody has read yet: some 5,000."""
_CONNECTIONS = 65536
"""That are counted at once, some 150 bytes each."""


def load(
    config: NodeConfig, own: ExitStack, given: Mapping[str, Any] | None = None, *, moving: bool = False
) -> dict[str, Object]:
    """The objects, sharing one set of maps: those given, and what they lack."""
    loaded: dict[str, Object] = {}
    shared = dict(given or {})
    for name, spec in specs(config, moving=moving).items():
        try:
            loaded[name] = own.enter_context(spec.load(reuse=shared, pins=config.pins))
        except KernelError:
            if name == "accelerator":
                features.require("sock_redirect")
            raise
        shared |= loaded[name].maps
    return loaded


def specs(config: NodeConfig, *, moving: bool = False) -> dict[str, ObjectSpec]:
    """The objects that a configuration asks for, as they are to be loaded."""
    told = {**settings(config), "moving": moving}
    optional = {
        "xdp": config.xdp,
        "overlay": config.tunnel is not None,
        "accelerator": config.accelerate,
        "stream": config.l7,
    }
    found = {}
    for name in ("pod", "host", "socket", *(name for name, wanted in optional.items() if wanted)):
        spec = ObjectSpec.from_file(name)
        sizes = config.sizes
        if not config.policy:
            sizes |= dict.fromkeys(POLICY_MAPS, 1)
        tells = config.flows is not None
        sizes["kd_events"] = _EVENTS if tells else mmap.PAGESIZE
        sizes["kd_dns"] = _MESSAGES if config.dns else mmap.PAGESIZE
        sizes["kd_connections"] = _CONNECTIONS if tells else 1
        spec = spec.with_maps(**{m: n for m, n in sizes.items() if m in spec.maps})
        found[name] = spec.with_config(**{s: value for s, value in told.items() if s in spec.config})
    return found


def settings(config: NodeConfig) -> dict[str, ConfigValue]:
    """What the programs are told when they are loaded."""
    told = {**config.constants, "node_netns": cookie(config.netns)}
    if (tunnel := config.tunnel) is not None:
        device = in_netns(config.netns, lambda: device_index(tunnel.device))
        told |= {"tunnel_ipv6": tunnel.ipv6, "tunnel_device": device, "tunnel_port": tunnel.udp_port}
    return told


def cookie(netns: NetNs | None) -> int:
    """The number of a namespace, or of the calling thread's."""
    if netns is not None:
        return netns.cookie
    with NetNs.current() as current:
        return current.cookie
