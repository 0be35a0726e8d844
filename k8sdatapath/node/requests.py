"""Where a node's policies begin, and what they ask of requests and of questions to name servers.

Half of all code is for policies: who has none does not wait until it is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from k8sdatapath import maps
from k8sdatapath.node.config import NodeConfig
from k8sdatapath.objects import Object
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.datapath.identity_policy import IdentityPolicy
    from k8sdatapath.datapath.l7_policy import L7Policy

__all__ = ["end_pinned_requests", "l7_of", "policy_of"]


def l7_of(config: NodeConfig, objects: Mapping[str, Object], own: ExitStack) -> L7Policy | None:
    """That of a node, if it has one; its programs are the node's."""
    if not config.l7:
        return None
    from k8sdatapath.datapath.l7_policy import L7Policy

    return own.enter_context(L7Policy.bind(objects["stream"]))


def policy_of(
    config: NodeConfig, objects: Mapping[str, Object], l7: L7Policy | None, own: ExitStack
) -> IdentityPolicy | None:
    """Who may talk to whom on a node, if it has that enforced."""
    if not config.policy:
        return None
    from k8sdatapath.datapath.dns_rules import NameSets
    from k8sdatapath.datapath.identity_policy import IdentityPolicy

    names = own.enter_context(NameSets(objects["pod"])) if config.dns else None
    return own.enter_context(IdentityPolicy.bind(objects["pod"], l7=l7, names=names))


def end_pinned_requests(pins: PinDir) -> None:
    """Maps are to become others: connections keep the programs over the old ones, so nothing passes there."""
    if "kd_l7_conns" in pins.maps:
        from k8sdatapath.datapath.l7_policy import end_connections

        with maps.bind(maps.Hash, pins.open_map("kd_l7_conns"), owned=True) as conns:
            end_connections(conns)
