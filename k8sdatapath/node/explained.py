"""What a node can be asked about packets that nobody has sent."""

from __future__ import annotations

from collections.abc import Mapping
from threading import RLock
from typing import TYPE_CHECKING

from k8sdatapath import maps
from k8sdatapath.datapath.place import Place
from k8sdatapath.model import Frontend, IPAddress, Protocol
from k8sdatapath.node.config import NodeConfig
from k8sdatapath.node.loading import cookie, settings
from k8sdatapath.objects import Object
from k8sdatapath.programs.base import in_netns
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from k8sdatapath.datapath.explainer import Explainer
    from k8sdatapath.datapath.explanation import Explanation
    from k8sdatapath.datapath.request_judge import RequestJudge
    from k8sdatapath.datapath.walk import Walk

__all__ = ["Explained"]


class Explained(Resource):
    """A datapath whose programs can be run on packets that somebody asks about.

    :ivar config: what it consists of.
    """

    config: NodeConfig
    _objects: Mapping[str, Object]
    _maps_stay: RLock
    _kept_explainer: Explainer | None = None
    _kept_judge: RequestJudge | None = None

    def explain(
        self, dialled: Frontend, source: IPAddress, at: Place = Place.POD, *, port: int = 40000
    ) -> Explanation:
        """What would become of the first packet from ``source`` to ``dialled``, and why; nothing is changed.

        See :class:`~k8sdatapath.datapath.explainer.Explainer`, which explains any packet.

        :param at: whether it comes from a pod, or through the first uplink, or leaves by that; or a process
            of the node dials.
        :param port: of the source.
        """
        from k8sdatapath.datapath.explainer import Device  # seldom asked for, and large

        config, device = self.config, None
        if at in (Place.UPLINK, Place.TO_UPLINK, Place.XDP) and config.uplinks:
            device = in_netns(config.netns, lambda: Device.find(config.uplinks[0]))
        with self._maps_stay:
            of_socket = cookie(config.netns) if at is Place.SOCKET else 0
            return self._explainer().dial(dialled, source, at, port=port, device=device, cookie=of_socket)

    def walk(self, dialled: Frontend, source: IPAddress, *, port: int = 40000, request: str = "") -> Walk:
        """The way of the first packet from a pod of this node to ``dialled``, place by place.

        See :func:`~k8sdatapath.datapath.walk.walk`.

        :raises ContractError: a request is asked about, and none is held to policies here.
        """
        from k8sdatapath.datapath.walk import walk

        with self._maps_stay:
            judge = self._judge() if request else None
            told = self._explainer(), dialled, source
            return walk(*told, port=port, netns=self.config.netns, request=request, requests=judge)

    def verdict(
        self,
        source: IPAddress | str,
        destination: IPAddress | str,
        port: int,
        protocol: Protocol = Protocol.TCP,
    ) -> Explanation:
        """What the policies in force here say of a new connection, one end of which is a pod of this node.

        See :meth:`~k8sdatapath.datapath.explainer.Explainer.verdict`.
        """
        with self._maps_stay:
            return self._explainer().verdict(source, destination, port, protocol)

    def _judge(self) -> RequestJudge:
        """Kept like :meth:`_explainer`."""
        if self._kept_judge is None:
            from k8sdatapath.datapath.request_judge import CONTRACT as JUDGED
            from k8sdatapath.datapath.request_judge import RequestJudge

            live = {name: each for loaded in self._objects.values() for name, each in loaded.maps.items()}
            self._kept_judge = RequestJudge.bind(
                {name: maps.bind(kind, live[name].fd) for name, kind in JUDGED.items() if name in live}
            )
        return self._kept_judge

    def _explainer(self) -> Explainer:
        """That which the node keeps: most of an answer is having the programs verified."""
        if self._kept_explainer is None:
            self._kept_explainer = self.explainer()
        return self._kept_explainer

    def _stop_explaining(self) -> None:
        for kept in self._kept_explainer, self._kept_judge:
            if kept is not None:
                kept.close()
        self._kept_explainer = self._kept_judge = None

    def explainer(self) -> Explainer:
        """An explainer of this node's packets, until it is resized. The caller closes it."""
        from k8sdatapath.datapath.explainer import CONTRACT as EXPLAINED
        from k8sdatapath.datapath.explainer import Explainer

        live = {name: each for loaded in self._objects.values() for name, each in loaded.maps.items()}
        bound = {name: maps.bind(kind, live[name].fd) for name, kind in EXPLAINED.items()}
        return Explainer.bind(bound, netns=self.config.netns, config=settings(self.config))
