"""Flows, and clients with their backends, into tables of another size while programs use them.

What the programs do on the way is in ``bpf/include/kd/maps/moving.h`` and ``conntrack.h`` beside it: they go
from step to step by a number, :class:`~k8sdatapath.tables.moving.Step`, that is written here. It goes up by
one when no program runs any more that has seen less than the last. Whatever kills the process, the programs
stay right at the step they are at, for as long as need be; who finds the tables goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from k8sdatapath import maps
from k8sdatapath.datapath.batches import run_over
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.layout import u32
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.pins import PinDir
from k8sdatapath.resource import Resource
from k8sdatapath.tables.affinity import AffinityKey, AffinityRow
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.halves import gather, gone
from k8sdatapath.tables.moving import Step

__all__ = ["MOVED", "FlowMove"]

#: The tables that move: names of the old ones, and of the new ones until these have their names.
MOVED = {"kd_conntrack": "kd_conntrack_to", "kd_affinity": "kd_affinity_to"}

_FLOWS = maps.LRUHash[Tuple, ConntrackRow]
_CLIENTS = maps.LRUHash[AffinityKey, AffinityRow]
_CONTRACT = {
    "kd_conntrack": _FLOWS,
    "kd_conntrack_to": _FLOWS,
    "kd_affinity": _CLIENTS,
    "kd_affinity_to": _CLIENTS,
    "kd_moving": maps.Array[u32],
}


class FlowMove(Resource):
    """A move of flows and clients, from wherever it has come to. Make one with :meth:`bind`."""

    def __init__(self, bound: dict[str, Any], own: ExitStack) -> None:
        spec = ObjectSpec.from_file("move").with_config(moving=True)
        self._bound = bound
        self._own = own
        self._mover = own.enter_context(spec.load(reuse=bound))

    @classmethod
    def bind(cls, source: Bindable) -> FlowMove:
        """The move between the maps that an object, a pin directory or a mapping has.

        :raises ContractError: a map is missing.
        :raises LayoutError: a map holds something else.
        """
        bound, owned = bind_maps(source, _CONTRACT, "a move of flows")
        with ExitStack() as undo:
            undo.enter_context(owned)
            return cls(bound, undo.pop_all())

    @classmethod
    def resume(cls, pins: PinDir) -> None:
        """Finish what a process that is no more has begun, if there is such a thing."""
        if not _CONTRACT.keys() <= set(pins.maps):
            return
        bound, owned = bind_maps(pins, {"kd_moving": _CONTRACT["kd_moving"]}, "a move of flows")
        with owned:  # without a move the tables may still be another version's
            if Step(bound["kd_moving"][0]) in (Step.OLD, Step.BOTH, Step.OVER):
                return
        with cls.bind(pins) as move:
            move.finish(pins)
        for name in (*MOVED.values(), "kd_moving"):
            pins.map_path(name).unlink()

    @property
    def step(self) -> Step:
        """How far it has come."""
        return Step(self._bound["kd_moving"][0])

    def go(self, step: Step) -> None:
        """Have all programs take a step; returns when they have."""
        from k8sdatapath.pybpf.memory import wait_for_programs

        self._bound["kd_moving"][0] = step
        wait_for_programs()

    def begin(self) -> None:
        """Have the new tables be right from now on. Every program that uses any of the tables knows both."""
        self.go(Step.OLD)  # those before them have ended as well
        self.go(Step.BOTH)

    def finish(self, pins: PinDir | None) -> None:
        """Have the new tables alone be used, with all that was in the old ones.

        :param pins: where they get the old ones' names.
        """
        steps: dict[Step, Callable[[], None]] = {
            Step.TAKING: self._take,
            Step.TAKEN: lambda: None,
            Step.NEW: self._clean,
        }
        for step, act in steps.items():
            if step >= self.step:
                self.go(step)
                act()
        if pins is not None:
            for name, new in MOVED.items():
                pins.replace(self._bound[new].fd, pins.map_path(name))
        self.go(Step.OVER)

    def _take(self) -> None:
        """Ask for everything that is in the old tables. Nobody writes to these."""
        for name, what in (("kd_conntrack", "flows"), ("kd_affinity", "clients")):
            keys, _, _ = self._bound[name].items_packed()
            run_over(self._mover, f"move_{what}", f"kd_move_{what}", keys)

    def _clean(self) -> None:
        """Take away the marks of flows that were removed meanwhile. No new ones are made."""
        keys, rows, _ = self._bound["kd_conntrack_to"].items_packed()
        run_over(self._mover, "move_flows", "kd_move_flows", gather(keys, gone(rows)))

    def close(self) -> None:
        """Let go of the maps and of what was loaded."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<FlowMove {self._bound['kd_conntrack']!r} {self.step.name.lower()}>"
