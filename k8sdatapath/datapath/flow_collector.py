"""FlowCollector: takes away flows that were silent for too long, unless they have spoken since.

Between a look at a table of half a million entries and the removal of what is over, a client may have begun
to use the same ports again. What it has begun must stay, so the kernel looks once more, right before.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from k8sdatapath import maps
from k8sdatapath.datapath.batches import run_over
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.resource import Resource
from k8sdatapath.tables.begun import BegunPair
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.halves import Pair

__all__ = ["FlowCollector"]


class FlowCollector(Resource):
    """Removes flows as far as they are what was seen of them. Its methods may be called from any thread."""

    def __init__(self, loaded: Object) -> None:
        self._loaded = loaded
        self._lock = Lock()

    @classmethod
    def bind(
        cls, flows: maps.LRUHash[Tuple, ConntrackRow], begun: maps.Array[BegunPair] | None = None
    ) -> FlowCollector:
        """A collector of a table in the kernel.

        :param begun: where flows are that have only begun.
        :raises ContractError: the table is in memory.
        """
        shared: dict[str, maps.Map] = {"kd_conntrack": flows}
        if begun is not None:
            shared["kd_begun"] = begun
        return cls(ObjectSpec.from_file("collect").load(reuse=shared))

    def settle(self) -> int:
        """Have the table hold the flows that have only begun; returns how many these were."""
        return self._loaded.programs["settle_flows"].run(repeat=0).retval

    def remove(self, flows: Iterable[Pair]) -> int:
        """Remove both halves of those flows of which no packet has come; returns how many these are."""
        rows = b"".join([flow.silent for flow in flows])
        with self._lock:
            return run_over(self._loaded, "collect_flows", "kd_silent", rows)

    def close(self) -> None:
        """Unload the program; idempotent."""
        self._loaded.close()

    def __repr__(self) -> str:
        return f"<FlowCollector {self._loaded!r}>"
