"""Maglev lookup tables (Eisenbud et al., "Maglev", NSDI 2016).

A table of a prime number of slots is shared out among the backends, each by its own permutation. Which slots
a backend gets depends on what it is (address, port, protocol) and on nothing else, so every node computes
the same table, and one backend more or less moves few slots.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from k8sdatapath.model import Backend, Protocol

__all__ = ["backend_hash", "maglev_slots", "table_size"]

#: Primes just below powers of two: a run of slots takes up the next power of two.
SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)


def table_size(backends: int) -> int:
    """Slots for so many backends: at least a hundred for each, so that shares differ by at most 1 %."""
    return next((size for size in SIZES if size >= 100 * backends), SIZES[-1])


def backend_hash(backend: Backend, protocol: Protocol) -> int:
    """A 64-bit number that stands for a backend on every node."""
    identity = backend.address.packed + backend.port.to_bytes(2, "big") + bytes([protocol])
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "big")


def maglev_slots(backends: Sequence[Backend], ids: Sequence[int], protocol: Protocol) -> array[int]:
    """The backend id for every slot.

    :param backends: those that take part, with at least one weight above 0; ``ids`` belong to them in order.
    """
    from k8sdatapath.pybpf.maglev import fill

    # The paper's turns go by a fixed order of members; any that all nodes agree on will do.
    members = sorted(
        (backend_hash(backend, protocol), id, backend.weight)
        for backend, id in zip(backends, ids, strict=True)
    )
    return fill(members, table_size(len(members)))
