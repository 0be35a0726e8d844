"""Who gets which number: allocators of identities, over stores that nodes share.

``allocator``: one number for each set of labels, whoever asks at the same time. ``collector``: takes back
what nobody uses. ``timing``: what both have to agree on. ``records``: what stores hold. ``memory``: a store.
``networks``: numbers that a node gives to networks by itself.
"""

from k8sdatapath.identity.allocator import Allocator, IdentityChange, StoreAllocator
from k8sdatapath.identity.collector import Collected, Collecting, Collector
from k8sdatapath.identity.memory import MemoryStore
from k8sdatapath.identity.networks import NetworkAllocator
from k8sdatapath.identity.timing import Timing

__all__ = [
    "Allocator",
    "Collected",
    "Collecting",
    "Collector",
    "IdentityChange",
    "MemoryStore",
    "NetworkAllocator",
    "StoreAllocator",
    "Timing",
]
