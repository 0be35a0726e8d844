"""Other maps under a node's programs, while traffic flows.

Maps that user space alone writes are copied, and nobody writes them until every hook has the new ones. Flows
are made by the programs all the time, and one hook makes what another has to find a moment later. So hooks do
not go from the old table to the new one at once, but in two steps:

1. Every hook gets programs that are ``moving``: they write flows to both tables, and find what is in either.
   Hooks that have not got them yet know the old table only, in which is all there is.
2. Flows are copied until both tables say the same.
3. Every hook gets programs over the new maps. Hooks that have not got them yet find what these make.

What is pinned changes between 2 and 3: whenever the process is killed, the maps that a next one finds are
whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.copying import copy_ends, copy_flows, copy_map, copy_missing
from k8sdatapath.errors import CapacityError
from k8sdatapath.layout import addr
from k8sdatapath.node.hooks import Hooks
from k8sdatapath.objects import Object
from k8sdatapath.pins import PinDir
from k8sdatapath.tables.affinity import AffinityKey, AffinityRow
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.endpoints import EndpointRow

__all__ = ["Move"]

_FLOWS = maps.LRUHash[Tuple, ConntrackRow]
_CLIENTS = maps.LRUHash[AffinityKey, AffinityRow]
_PODS = maps.Hash[addr, EndpointRow]


@frozen
class Move:
    """From one set of objects to another, over other maps.

    :ivar changed: names of the maps that are others.
    :ivar between: objects that are ``moving`` from one flow table to the other; None if these are the same.
    """

    hooks: Hooks
    pins: PinDir | None
    changed: Collection[str]
    old: Mapping[str, Object]
    new: Mapping[str, Object]
    between: Mapping[str, Object] | None

    def check(self) -> None:
        """See that flows fit; a table that is nearly full would forget some.

        :raises CapacityError: they do not.
        """
        if self.between is not None:
            old, new = self._both("kd_conntrack", _FLOWS)
            room = new.info.max_entries * 3 // 4
            if len(old) > room:
                raise CapacityError(f"elements of {old.name}, three quarters at most,", len(old), room)

    def switch(self) -> None:
        """Copy what is not services, and put the new programs on every hook; or leave all as it was.

        :raises CapacityError: the pods do not fit.
        """
        if "kd_endpoints" in self.changed:
            copy_map(*self._both("kd_endpoints", _PODS))
        if "kd_affinity" in self.changed:
            copy_missing(*self._both("kd_affinity", _CLIENTS))
        before = self.old
        with ExitStack() as undo:
            if self.between is not None:
                before = self.between
                undo.callback(self.hooks.switch, before, self.old)
                self.hooks.switch(self.old, before)
                copy_flows(*self._both("kd_conntrack", _FLOWS))
            undo.callback(self._pin, self.old)
            self._pin(self.new)
            self.hooks.switch(before, self.new)
            undo.pop_all()
        if self.between is not None:
            copy_ends(*self._both("kd_conntrack", _FLOWS))
        if "kd_affinity" in self.changed:
            copy_missing(*self._both("kd_affinity", _CLIENTS))

    def _both(self, name: str, kind: Any) -> tuple[Any, Any]:
        return self.old["pod"].map(name, kind), self.new["pod"].map(name, kind)

    def _pin(self, objects: Mapping[str, Object]) -> None:
        if self.pins is not None:
            for name in self.changed:
                self.pins.replace(objects["pod"].map_fds[name], self.pins.map_path(name))
