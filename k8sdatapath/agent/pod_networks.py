"""Which addresses the pods of an agent's node get."""

from __future__ import annotations

import logging

from k8sdatapath.agent.source import Nodes
from k8sdatapath.errors import ModelError
from k8sdatapath.model import IPNetwork
from k8sdatapath.node import Node

__all__ = ["PodNetworks"]

_log = logging.getLogger("k8sdatapath.agent.agent")


class PodNetworks:
    """Has a node know what its Node says, as soon as it does; until then it knows what it did before.

    :param name: the Node's.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._name = name
        self._seen: tuple[IPNetwork, ...] | None = None

    def update(self, nodes: Nodes) -> None:
        """Take over ``podCIDRs``, which new nodes are given late. If the Node is gone, they stay."""
        found = next((each.pod_networks for each in nodes if each.name == self._name), None)
        if found is None or found == self._seen:
            return
        self._seen = found
        try:
            self._node.pod_networks = found
        except ModelError as error:
            _log.error("podCIDRs of the Node are not taken over: %s", error)
            return
        if found:
            _log.info("pods of this node are in %s", ", ".join(map(str, found)))
        else:
            _log.warning(
                "note: the Node has no podCIDRs, nor are podNetworks told: "
                "new pods are isolated when their devices are noticed"
            )
