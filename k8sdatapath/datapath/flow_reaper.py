"""FlowReaper: flows of datagrams do not outlive the backend or the frontend that they were made for.

A flow whose backend has left begins anew with its next datagram. If none comes, it is only a row in the flow
table until it was silent for long, and looks like a flow to an address that may be another pod's by now. TCP
and SCTP drain: their flows end by themselves.

The last datagram may be with the backend still. Its answer has two to three seconds to come from the
service's address; what is kept for it is no flow any more, and is taken away by the next walk after that.
"""

from __future__ import annotations

from k8sdatapath.datapath.contract import Bindable, load_over
from k8sdatapath.objects import Object
from k8sdatapath.resource import Resource

__all__ = ["FlowReaper"]


class FlowReaper(Resource):
    """Forgets flows of UDP whose backend or frontend is gone. Minimum kernel: 5.14.

    Make one with :meth:`bind`, over the maps that the programs on packets use.
    """

    def __init__(self, loaded: Object) -> None:
        self._loaded = loaded
        self._program = loaded.programs["reap_flows"]

    @classmethod
    def bind(cls, source: Bindable) -> FlowReaper:
        """A reaper over the maps of an object, a pin directory, or a mapping of name to map.

        :raises ContractError: a map is missing.
        """
        return cls(load_over(source, "flow_reaper", "a flow reaper"))

    def reap(self) -> int:
        """Forget them; returns how many. One walk through the table, inside the kernel.

        And take away what earlier walks have kept for answers on their way, which is not counted again.

        Programs that chose a backend before it left are waited for: they may be making a flow to it.
        """
        from k8sdatapath.pybpf.memory import wait_for_programs

        wait_for_programs()
        return self._program.run(repeat=0).retval

    def close(self) -> None:
        """Unload the program; idempotent."""
        self._loaded.close()

    def __repr__(self) -> str:
        return f"<FlowReaper {self._loaded!r}>"
