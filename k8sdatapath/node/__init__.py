"""Node: the stock composition. Objects loaded once, maps shared, programs on every hook that a node has.

Read it as an example: all of it is public API, and another composition is as short.
"""

from k8sdatapath.node.attached_pods import AttachedPod
from k8sdatapath.node.config import Capacity, NodeConfig
from k8sdatapath.node.known_pods import IdentifiedPods
from k8sdatapath.node.node import Node
from k8sdatapath.node.pod_tracker import PodStatus, PodTracker
from k8sdatapath.node.tunnel import Tunnel

__all__ = [
    "AttachedPod",
    "Capacity",
    "IdentifiedPods",
    "Node",
    "NodeConfig",
    "PodStatus",
    "PodTracker",
    "Tunnel",
]
