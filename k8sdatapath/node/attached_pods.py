"""The pods of a node: their devices, which have programs, and their addresses, which lead there."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from threading import RLock
from typing import TYPE_CHECKING

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.talks import forget_talks
from k8sdatapath.errors import AddressInUseError, DeviceGoneError, MapFullError
from k8sdatapath.layout import addr, layout_of
from k8sdatapath.model import IPAddress, IPNetwork, Protocol, address
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node.composition import pod_end_hooks, pod_hooks, pods_of
from k8sdatapath.node.config import NodeConfig, one_of_each_family
from k8sdatapath.node.devices import mac_of
from k8sdatapath.node.hooks import Hooks
from k8sdatapath.node.observing import NodeNames
from k8sdatapath.objects import Object
from k8sdatapath.programs.base import device_index, in_netns
from k8sdatapath.resource import Resource
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.pod_networks import PodNetworkRow
from k8sdatapath.tables.policy import TalkRow

if TYPE_CHECKING:
    from k8sdatapath.datapath.identity_policy import IdentityPolicy
    from k8sdatapath.datapath.l7_policy import L7Policy
    from k8sdatapath.datapath.socket_accelerator import SocketAccelerator

__all__ = ["AttachedPod", "AttachedPods"]

_FAMILIES = 4, 6


@frozen
class AttachedPod:
    """A device that has programs for a pod, and the addresses that are delivered there.

    :ivar device: empty for addresses whose device has gone.
    """

    device: str
    addresses: frozenset[IPAddress]


class AttachedPods(Resource):
    """A datapath that pods come into, and leave."""

    config: NodeConfig
    policy: IdentityPolicy | None
    l7: L7Policy | None
    accelerator: SocketAccelerator | None
    names: NodeNames
    _objects: Mapping[str, Object]
    _hooks: Hooks
    _maps_stay: RLock
    _endpoints: maps.Hash[addr, EndpointRow]
    _pod_networks: maps.Array[PodNetworkRow]
    _talks: maps.LRUHash[Tuple, TalkRow]
    _pod_netns: dict[str, NetNs]
    _asking: dict[IPAddress, frozenset[Protocol]]  # over what their questions to name servers are shown

    def attach_pod(
        self,
        device: str,
        addresses: Iterable[IPAddress],
        *,
        pod_mac: str,
        identity: int = 0,
        workload: Workload | None = None,
        netns: NetNs | None = None,
    ) -> None:
        """Take a pod into the datapath. Its policy is in force before it can be reached.

        :param device: the node's end of the pod's veth.
        :param addresses: the pod's addresses.
        :param pod_mac: the MAC of the pod's end.
        :param identity: the number of the pod's labels, of 24 bits, which other nodes learn through a tunnel.
        :param workload: what policies know of it; without it, where policies are enforced, it is cut off.
        :param netns: the pod's, in which requests that are denied are answered; without it they are cut off,
            and connections that are older than a policy of requests go on. It may be closed afterwards.
        :raises ModelError: an address that is none.
        :raises LayoutError: a MAC that is none.
        :raises DeviceGoneError: no such device.
        :raises AddressInUseError: another pod, whose device is still there, has one of the addresses.
        :raises MapFullError: there is room for no more pods; nothing was changed.
        """
        index, host_mac = in_netns(self.config.netns, lambda: (device_index(device), mac_of(device)))
        row = EndpointRow(index, identity, pod_mac, host_mac)
        addresses = [address(each) for each in addresses]
        for each in addresses:
            holder = self._holder(each)
            if holder not in (None, device):
                raise AddressInUseError(each, str(holder))
        layout_of(EndpointRow).pack(row)  # a MAC that is none is told before anything is attached
        with self._maps_stay, ExitStack() as undo:
            at_end = pod_end_hooks(device, netns) if self.l7 is not None and netns is not None else ()
            for hook in (*(pod_hooks(device) if self.config.tc_lb else ()), *at_end):
                if hook not in self._hooks:
                    undo.callback(self._hooks.drop, hook)
                self._hooks.put(hook, self._objects)
            if self.l7 is not None and netns is not None:
                known = self._pod_netns.get(device)
                if known is None or known.cookie != netns.cookie:
                    undo.callback(self._leave_netns, device)
                    self._leave_netns(device)
                    self._pod_netns[device] = netns.dup()
                    self.l7.tend_pod(self._pod_netns[device])
            if self.policy is not None and workload is not None:
                number = self.policy.attach(workload, identity)
                row = EndpointRow(index, identity, pod_mac, host_mac, number)
            before = self._endpoints.lookup_many(addresses)
            undo.callback(self._endpoints.delete_many, [each for each in addresses if each not in before])
            if self.policy is not None:
                stay = [each for each, held in before.items() if held.ifindex == index]
                forget_talks(self._talks, set(addresses).difference(stay))
            try:
                self._endpoints.update_many(dict.fromkeys(addresses, row))
                if workload is not None:
                    cookie = netns.cookie if netns is not None else 0
                    self.names.learn(workload, identity, number=row.policy, netns=cookie)
            except MapFullError as error:
                hint = "Node.resize gives room for more pods, in an agent `capacity`"
                raise MapFullError(error.op, error.subject, error.capacity, error.written, hint) from None
            undo.pop_all()
            if self.accelerator is not None and any(each.policy != row.policy for each in before.values()):
                self.accelerator.release(*before)  # by its former policy
            if self.policy is not None and workload is not None:
                self.policy.release()

    def detach_pod(self, device: str, addresses: Iterable[IPAddress]) -> None:
        """Take a pod out of the datapath; its device may be gone already.

        Addresses that another pod has meanwhile stay with that one, and the programs stay on the device while
        other addresses are behind it. Where policies are enforced they stay while the device is there: who
        is still behind it is cut off.

        :param addresses: none: the device is let go.
        """
        addresses = list(addresses)
        with self._maps_stay:
            gone = [each for each in addresses if self._holder(each) in (None, device)]
            self._endpoints.delete_many(gone)
            self.names.vacate(gone)
            if self.l7 is not None:
                self.l7.show(gone, ())
            for each in gone:
                self._asking.pop(each, None)
            if self.accelerator is not None and gone:
                self.accelerator.release(*gone)
            if self.policy is not None:
                self.policy.detach(gone)
            if device not in {pod.device for pod in self.pods if pod.addresses}:
                stays = self.policy is not None and bool(addresses) and self._is_there(device)
                for hook in (*(() if stays else pod_hooks(device)), *pod_end_hooks(device)):
                    self._hooks.drop(hook)
                self._leave_netns(device)

    def show(self, workload: Workload) -> None:
        """Have what ``workload.visible`` says be flows, of a pod that is attached; and no more than that.

        Requests need ``l7``, and questions ``dns``; without these, or ``flows``, nothing is shown.

        :raises CapacityError: there is no room for so many ports; nothing was changed.
        """
        with self._maps_stay:
            if self.l7 is not None:
                http = [(each.toward, each.port) for each in workload.visible if each.kind == "HTTP"]
                self.l7.show(workload.addresses, http)
            asked = frozenset(each.protocol for each in workload.visible if each.kind == "DNS")
            self._asking |= dict.fromkeys(workload.addresses, asked)

    @property
    def pod_networks(self) -> tuple[IPNetwork, ...]:
        """Which addresses pods of this node get, as last told by this process or one before it.

        May be set at any time, to at most one network of each family; what is pinned remembers it. Where
        policies are enforced, who has one of these addresses and was not attached is cut off at once.
        """
        with self._maps_stay:
            rows = [self._pod_networks[at] for at in range(len(_FAMILIES))]
        return tuple(found for row in rows if (found := row.network) is not None)

    @pod_networks.setter
    def pod_networks(self, networks: Iterable[IPNetwork | str]) -> None:
        of: dict[int, IPNetwork] = {each.version: each for each in one_of_each_family(networks)}
        with self._maps_stay:
            for at, family in enumerate(_FAMILIES):
                row = PodNetworkRow.of(of.get(family))
                if self._pod_networks[at] != row:
                    self._pod_networks[at] = row

    @property
    def pods(self) -> tuple[AttachedPod, ...]:
        """What is attached, by this process or one before it; each device once."""
        names = in_netns(self.config.netns, lambda: dict(socket.if_nameindex()))
        found: dict[str, set[IPAddress]] = {device: set() for device in pods_of(self._hooks)}
        for each, row in self._endpoints.items():
            found.setdefault(names.get(row.ifindex, ""), set()).add(each)
        return tuple(AttachedPod(device, frozenset(addresses)) for device, addresses in found.items())

    def _holder(self, pod_address: IPAddress) -> str | None:
        """The device that leads to the pod with an address, if both are there."""
        row = self._endpoints.get(pod_address)
        if row is None:
            return None
        try:
            return in_netns(self.config.netns, lambda: socket.if_indextoname(row.ifindex))
        except OSError:
            return None

    def _is_there(self, device: str) -> bool:
        with suppress(DeviceGoneError):
            return bool(in_netns(self.config.netns, lambda: device_index(device)))
        return False

    def _leave_all_netns(self) -> None:
        for device in list(self._pod_netns):
            self._pod_netns.pop(device).close()

    def _leave_netns(self, device: str) -> None:
        netns = self._pod_netns.pop(device, None)
        if netns is not None:
            if self.l7 is not None:
                self.l7.detach_pod(netns)
            netns.close()
