"""Where a node's HTTP policy begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from k8sdatapath import maps
from k8sdatapath.datapath.l7_policy import L7Policy, end_connections
from k8sdatapath.node.config import NodeConfig
from k8sdatapath.objects import Object
from k8sdatapath.pins import PinDir

__all__ = ["end_pinned_requests", "l7_of"]


def l7_of(config: NodeConfig, objects: Mapping[str, Object], own: ExitStack) -> L7Policy | None:
    """That of a node, if it has one; its programs are the node's."""
    return own.enter_context(L7Policy.bind(objects["stream"])) if config.l7 else None


def end_pinned_requests(pins: PinDir) -> None:
    """Maps are to become others: connections keep the programs over the old ones, so nothing passes there."""
    if "kd_l7_conns" in pins.maps:
        with maps.bind(maps.Hash, pins.open_map("kd_l7_conns"), owned=True) as conns:
            end_connections(conns)
