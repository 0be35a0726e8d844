"""StreamReaper: ends connections whose requests nobody reads, though policies ask for that."""

from __future__ import annotations

from k8sdatapath import programs
from k8sdatapath.datapath.contract import Bindable, load_over
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object
from k8sdatapath.programs.base import in_netns
from k8sdatapath.resource import Resource

__all__ = ["StreamReaper"]


class StreamReaper(Resource):
    """Destroys connections that are older than a policy, and denied ones that stay. Minimum kernel: 6.5.

    Make one with :meth:`bind`, over the maps that the programs on connections use.
    """

    def __init__(self, loaded: Object) -> None:
        self._loaded = loaded

    @classmethod
    def bind(cls, source: Bindable) -> StreamReaper:
        """A reaper over the maps of an object, a pin directory, or a mapping of name to map.

        :raises ContractError: a map is missing.
        :raises NotSupportedError: the kernel cannot destroy sockets.
        """
        return cls(load_over(source, "stream_reaper", "a reaper of connections", needs="sock_destroy"))

    def reap(self, netns: NetNs | None = None) -> int:
        """Destroy those of one network namespace; returns how many.

        :param netns: where; None is the namespace of the calling thread.
        """
        return len(in_netns(netns, lambda: self._loaded.program("l7_reap", programs.Iter).read()))

    def close(self) -> None:
        """Unload the program; idempotent."""
        self._loaded.close()

    def __repr__(self) -> str:
        return f"<StreamReaper {self._loaded!r}>"
