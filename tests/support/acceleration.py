"""What tests of accelerated sockets ask of a node."""

from __future__ import annotations

from k8sdatapath import Accelerated
from k8sdatapath.datapath.socket_accelerator import AccelerationStats, SocketPair
from k8sdatapath.lab.lab import LabNode, Pod
from k8sdatapath.node import Capacity

SMALL = Capacity(services=64, backends=256, slots=1024, flows=4096, pods=16)


def choose(node: LabNode, *wanted: Accelerated) -> None:
    node.accelerator.plan(wanted).apply()


def pod(node: LabNode, name: str) -> Pod:
    return next(each for each in node.pods if each.name == name)


def pair(node: LabNode) -> SocketPair:
    """The only one."""
    (found,) = node.accelerator.pairs()
    return found


def since(node: LabNode, before: AccelerationStats) -> dict[str, int]:
    """What has been counted meanwhile."""
    now = node.accelerator.stats()
    names = ("pairs", "refused", "handed", "alone", "policy", "behind", "full", "shut", "special")
    return {name: n for name in names if (n := getattr(now, name) - getattr(before, name))}
