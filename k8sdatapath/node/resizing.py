"""Other maps under a node's programs, while traffic flows.

Maps that user space alone writes are copied, and nobody writes them until every hook has the new ones:
programs over the old and over the new maps answer alike. Flows and clients are made by the programs all the
time, and one hook makes what another has to find a moment later. So hooks do not go from the old tables to
the new ones at once, but by way of programs that know both, and that move to the new ones all together: see
:mod:`k8sdatapath.datapath.flow_move`.

1. Every hook gets these programs, which do as those before them at first. All other maps are the new ones.
2. What is pinned changes: whenever the process is killed, the maps that a next one finds are whole.
3. Flows move. Until here all can be undone, from here on it is only finished, if need be by a next process.
4. Every hook gets programs that know the new tables only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.copying import copy_map
from k8sdatapath.datapath.flow_move import MOVED, FlowMove
from k8sdatapath.errors import CapacityError
from k8sdatapath.layout import addr
from k8sdatapath.node.hooks import Hooks
from k8sdatapath.objects import Object
from k8sdatapath.pins import PinDir
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.policy import TalkRow

__all__ = ["Move"]

_FLOWS = maps.LRUHash[Tuple, ConntrackRow]
_PODS = maps.Hash[addr, EndpointRow]
_TALKS = maps.LRUHash[Tuple, TalkRow]


@frozen
class Move:
    """From one set of objects to another, over other maps.

    :ivar changed: names of the maps that are others.
    :ivar between: objects that are ``moving`` from one flow table to the other; None if these are the same.
    """

    hooks: Hooks
    pins: PinDir | None
    changed: AbstractSet[str]
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
                hint = "flows need a larger size than was asked for, or to be fewer"
                what = f"elements of {old.name}, three quarters at most,"
                raise CapacityError(what, len(old), room, hint=hint)

    def switch(self) -> None:
        """Copy what is not services, and put programs over the new maps on every hook; or leave all be.

        If flows move, what is left is :meth:`finish`, which there is no way back from.

        :raises CapacityError: the pods do not fit.
        """
        if "kd_endpoints" in self.changed:
            copy_map(*self._both("kd_endpoints", _PODS))
        if "kd_talks" in self.changed:
            self._copy_talks()
        after = self.new if self.between is None else self.between
        with ExitStack() as undo:
            if self.between is None:
                undo.callback(self._pin, self.old, self.changed)
                self._pin(self.new, self.changed)
            undo.callback(self.hooks.switch, after, self.old)
            self.hooks.switch(self.old, after)
            if "kd_talks" in self.changed:
                self._copy_talks()  # and those that have begun meanwhile
            if self.between is not None:
                undo.callback(self._pin, self.old, self.changed)
                self._pin(self.between, self.changed - MOVED.keys())
                with FlowMove.bind(self.between["pod"]) as flows:
                    flows.begin()
            undo.pop_all()

    def finish(self) -> None:
        """Have flows be where they belong, and nothing on the hooks any more that knows of a move."""
        if self.between is not None:
            with FlowMove.bind(self.between["pod"]) as flows:
                flows.finish(self.pins)
            self._pin(self.new, MOVED.values())
            self.hooks.switch(self.between, self.new)

    def _copy_talks(self) -> None:
        """What goes on meanwhile is newer where it is; a smaller table forgets what was silent longest."""
        old, new = self._both("kd_talks", _TALKS)
        there = dict(new.items())
        talks = [(key, talk) for key, talk in old.items() if key not in there]
        talks.sort(key=lambda each: each[1].last_seen)
        new.update_many(dict(talks[-new.info.max_entries :]))

    def _both(self, name: str, kind: Any) -> tuple[Any, Any]:
        return self.old["pod"].map(name, kind), self.new["pod"].map(name, kind)

    def _pin(self, objects: Mapping[str, Object], names: Iterable[str]) -> None:
        if self.pins is not None:
            for name in names:
                self.pins.replace(objects["pod"].map_fds[name], self.pins.map_path(name))
