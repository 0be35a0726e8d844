"""Which programs of a node go where."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from k8sdatapath.model import Masquerade
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node.config import NodeConfig
from k8sdatapath.node.hooks import CgroupHook, Hook, Hooks, MapHook, PodEndHook, TcHook, XdpHook, place_of
from k8sdatapath.objects import Object
from k8sdatapath.programs import Direction

__all__ = ["is_of_pod", "masquerading", "pod_end_hooks", "pod_hooks", "pods_of", "put_hooks"]

_BIND = ("bind4", "bind6")
_POD = {"from_pod": Direction.INGRESS, "to_pod": Direction.EGRESS}
_POD_END = {"l7_leaving": Direction.EGRESS, "l7_arriving": Direction.INGRESS}
_UPLINK = {"from_uplink": Direction.INGRESS, "to_uplink": Direction.EGRESS}
_TUNNEL = {"from_overlay": Direction.INGRESS, "to_overlay": Direction.EGRESS}


def put_hooks(hooks: Hooks, objects: Mapping[str, Object], config: NodeConfig) -> None:
    """Put programs wherever the configuration names a place; pods are attached one by one, later."""
    if config.socket_lb and config.cgroup is not None:
        for hook in CgroupHook.all(objects["socket"], config.cgroup):
            if config.protect_node_ports or hook.entry not in _BIND:
                hooks.put(hook, objects)
    if config.accelerate and config.cgroup is not None:
        for entry in ("accel_send", "accel_receive"):  # before a socket is there
            hooks.put(MapHook.of(objects["accelerator"], entry, "kd_accel_socks"), objects)
        for hook in CgroupHook.all(objects["accelerator"], config.cgroup, ["accel_connect"]):
            hooks.put(hook, objects)
    if config.l7 and config.cgroup is not None:
        stream = objects["stream"]
        for sockets in ("kd_l7_sockets", "kd_l7_clients"):  # likewise
            hooks.put(MapHook.of(stream, "l7_received", sockets), objects)
        hooks.put(MapHook.of(stream, "l7_sent", "kd_l7_clients"), objects)
        for hook in CgroupHook.all(stream, config.cgroup, ["l7_guard", "l7_guard_out", "l7_sockets"]):
            hooks.put(hook, objects)
    for device in masquerading(config).devices if config.masquerade is not None else ():
        for entry, direction in _UPLINK.items():
            hooks.put(TcHook("host", entry, device, direction), objects)
    for device in config.uplinks if config.tc_lb else ():
        for entry, direction in _UPLINK.items():
            hooks.put(TcHook("host", entry, device, direction), objects)
        if config.xdp:
            hooks.put_xdp(XdpHook("xdp", "xdp_in", device), objects)
    if config.tunnel is not None:
        for entry, direction in _TUNNEL.items():
            hooks.put(TcHook("overlay", entry, config.tunnel.device, direction), objects)


def pod_hooks(device: str) -> tuple[Hook, ...]:
    """Those of one pod, on the node's end of its veth."""
    return tuple(TcHook("pod", entry, device, direction) for entry, direction in _POD.items())


def pod_end_hooks(device: str, netns: NetNs | None = None) -> tuple[Hook, ...]:
    """Those on the pod's own end.

    :param netns: the pod's; None: to take over what is there.
    """
    return tuple(
        PodEndHook("stream", entry, device, direction, netns=netns) for entry, direction in _POD_END.items()
    )


def is_of_pod(link: str) -> bool:
    """Whether a link of this name leads to a pod."""
    return link.partition("-")[0] in _POD


def pods_of(hooks: Hooks) -> set[str]:
    """The devices of pods that have programs, or had them before this process."""
    return {place_of(link) for link in hooks.names if is_of_pod(link) or link.partition("-")[0] in _POD_END}


def masquerading(config: NodeConfig) -> Masquerade:
    """How pods leave; at the uplinks, if the configuration does not say where."""
    wanted = config.masquerade or Masquerade()
    return evolve(wanted, devices=wanted.devices or config.uplinks)
