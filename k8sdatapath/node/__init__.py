"""Node: the stock composition. Objects loaded once, maps shared, programs on every hook that a node has.

Read it as an example: all of it is public API, and another composition is as short.
"""

from k8sdatapath.node.config import Capacity, NodeConfig
from k8sdatapath.node.node import Node

__all__ = ["Capacity", "Node", "NodeConfig"]
