"""What a node can be asked about packets that nobody has sent."""

from __future__ import annotations

from collections.abc import Mapping
from threading import RLock
from typing import TYPE_CHECKING

from k8sdatapath import maps
from k8sdatapath.datapath.explanation import Explanation, Place
from k8sdatapath.model import Frontend, IPAddress, Protocol
from k8sdatapath.node.config import NodeConfig
from k8sdatapath.node.loading import cookie, settings
from k8sdatapath.objects import Object
from k8sdatapath.programs.base import in_netns
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from k8sdatapath.datapath.explainer import Explainer
    from k8sdatapath.datapath.walk import Walk

__all__ = ["Explained"]


class Explained(Resource):
    """A datapath whose programs can be run on packets that somebody asks about.

    :ivar config: what it consists of.
    """

    config: NodeConfig
    _objects: Mapping[str, Object]
    _maps_stay: RLock

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
        with self._maps_stay, self.explainer() as explainer:
            of_socket = cookie(config.netns) if at is Place.SOCKET else 0
            return explainer.dial(dialled, source, at, port=port, device=device, cookie=of_socket)

    def walk(self, dialled: Frontend, source: IPAddress, *, port: int = 40000) -> Walk:
        """The way of the first packet from a pod of this node to ``dialled``, place by place.

        See :func:`~k8sdatapath.datapath.walk.walk`.
        """
        from k8sdatapath.datapath.walk import walk

        with self._maps_stay, self.explainer() as explainer:
            return walk(explainer, dialled, source, port=port, netns=self.config.netns)

    def verdict(
        self, source: IPAddress, destination: IPAddress, port: int, protocol: Protocol = Protocol.TCP
    ) -> Explanation:
        """What the policies in force here say of a new connection, one end of which is a pod of this node.

        See :meth:`~k8sdatapath.datapath.explainer.Explainer.verdict`.
        """
        with self._maps_stay, self.explainer() as explainer:
            return explainer.verdict(source, destination, port, protocol)

    def explainer(self) -> Explainer:
        """An explainer of this node's packets, until it is resized. The caller closes it."""
        from k8sdatapath.datapath.explainer import CONTRACT as EXPLAINED
        from k8sdatapath.datapath.explainer import Explainer

        live = {name: each for loaded in self._objects.values() for name, each in loaded.maps.items()}
        bound = {name: maps.bind(kind, live[name].fd) for name, kind in EXPLAINED.items()}
        return Explainer.bind(bound, netns=self.config.netns, config=settings(self.config))
