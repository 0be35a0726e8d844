"""The objects of a node: which, with which settings, over which maps."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from k8sdatapath import features, maps
from k8sdatapath.errors import KernelError
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node.config import POLICY_MAPS, NodeConfig
from k8sdatapath.objects import ConfigValue, Object, ObjectSpec
from k8sdatapath.programs.base import device_index, in_netns
from k8sdatapath.pybpf import cpus
from k8sdatapath.tables.begun import BEGUN_PAIRS

__all__ = ["cookie", "load", "settings", "specs"]

_EVENTS = 1 << 20
"""Bytes of events of sockets that nobody has read yet: some 6,000."""
_ROWS, _MOST_ROWS = 1 << 16, 1 << 18
"""Events of packets that nobody has read yet, 168 bytes each; the most is for more than 32 CPUs."""
_ROWS_EACH = 1 << 12
"""Of each CPU at least, up to 64: at 200,000 a second what comes in 20 ms."""
_MESSAGES = 1 << 20
"""Bytes of messages of name servers that nobody has read yet: some 5,000."""
_CONNECTIONS = 65536
"""That are counted at once, some 150 bytes each."""
_LONG = ("l7_received", "l7_sent", "from_uplink", "from_pod", "from_overlay")
"""Programs that the verifier takes longest over."""


def load(
    config: NodeConfig, own: ExitStack, given: Mapping[str, Any] | None = None, *, moving: bool = False
) -> dict[str, Object]:
    """The objects, sharing one set of maps: those given, and what they lack."""
    loaded: dict[str, Object] = {}
    shared = dict(given or {})
    for name, spec in specs(config, moving=moving).items():
        with _missed(name):
            loaded[name] = own.enter_context(spec.load(reuse=shared, pins=config.pins, programs=()))
        made = loaded[name].map_fds
        shared |= {each: maps.bind_untyped(fd) for each, fd in made.items() if each not in shared}
    with ThreadPoolExecutor() as beside:  # the verifier's work is by far the most of it
        parts = [(name, part) for name, each in loaded.items() for part in _parts(each.spec)]
        loading = [(name, beside.submit(loaded[name].load_programs, *part)) for name, part in parts]
        for name, each in loading:
            with _missed(name):
                each.result()
    return loaded


@contextmanager
def _missed(name: str) -> Iterator[None]:
    """What the kernel lacks for an object is told, where that may be."""
    try:
        yield
    except KernelError:
        if name == "accelerator":
            features.require("sock_redirect")
        raise


def _parts(spec: ObjectSpec) -> list[list[str]]:
    """Its programs, in parts to be loaded beside each other: opening an object has a price as well."""
    rest = [name for name in spec.programs if name not in _LONG]
    return [*([name] for name in spec.programs if name in _LONG), *([rest] if rest else [])]


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
        sizes["kd_event_rows"] = event_rows(len(cpus.online())) if tells else 1
        sizes["kd_event_queues"] = cpus.possible()[-1] + 1
        sizes["kd_dns"] = _MESSAGES if config.dns else mmap.PAGESIZE
        if not config.dns:
            sizes |= dict.fromkeys(("kd_dns_table", "kd_dns_sets", "kd_dns_streams", "kd_dns_names"), 1)
        sizes["kd_begun"] = BEGUN_PAIRS if config.masquerade is not None else 1
        sizes["kd_connections"] = _CONNECTIONS if tells else 1
        own, constants = spec.maps, spec.config
        spec = spec.with_maps(**{m: n for m, n in sizes.items() if m in own})
        found[name] = spec.with_config(**{s: value for s, value in told.items() if s in constants})
    return found


def event_rows(online: int) -> int:
    """How many events of packets there is room for; each of so many CPUs gets a share, a power of two."""
    return min(max(_ROWS, _ROWS_EACH << (online - 1).bit_length()), _MOST_ROWS)


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
