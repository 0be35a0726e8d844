"""Pods whose devices one tells, and whose labels another: neither waits for the other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from threading import RLock
from typing import TYPE_CHECKING

from attrs import define, evolve

from k8sdatapath.errors import DatapathError
from k8sdatapath.model import IPAddress
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.pod_devices import netns_behind
from k8sdatapath.node.config import NodeConfig
from k8sdatapath.programs.base import in_netns

if TYPE_CHECKING:
    from k8sdatapath.node.attached_pods import AttachedPod
    from k8sdatapath.node.node import Node

__all__ = ["IdentifiedPods"]

_log = logging.getLogger(__name__)

Party = tuple[Workload, int]


@define
class _Attached:
    device: str
    pod_mac: str
    party: Party | None


class IdentifiedPods:
    """Takes pods into a node that enforces policies, as soon as it is known where and who they are.

    A pod of whom only the device is known is attached, and cut off: nobody knows yet what it may do. But one
    that an earlier process has attached keeps what that one gave it.

    :param node: with ``policy=True``.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = RLock()
        self._attached: dict[IPAddress, _Attached] = {}
        self._known: dict[IPAddress, Party] = {}
        self._unseen: set[str] = set()
        self._inherited = {(pod.device, each) for pod in node.pods if pod.device for each in pod.addresses}

    @property
    def config(self) -> NodeConfig:
        """The node's."""
        return self._node.config

    @property
    def pods(self) -> tuple[AttachedPod, ...]:
        """What is attached."""
        return self._node.pods

    def attach_pod(self, device: str, addresses: Iterable[IPAddress], *, pod_mac: str) -> None:
        """Take a pod in, whoever it is; raises as ``Node.attach_pod``. Without addresses it is cut off."""
        with self._lock:
            addresses = list(addresses)
            if not addresses:
                self._node.attach_pod(device, (), pod_mac=pod_mac)
            for party, each in self._by_party(addresses).items():
                self._attach(device, each, pod_mac, party)

    def detach_pod(self, device: str, addresses: Iterable[IPAddress]) -> None:
        """Let a pod go; without addresses, its device."""
        with self._lock:
            addresses = list(addresses)
            self._node.detach_pod(device, addresses)
            self._unseen.discard(device)
            for each in addresses:
                if (known := self._attached.get(each)) and known.device == device:
                    del self._attached[each]
                self._inherited.discard((device, each))

    def know(self, pods: Mapping[str, Party]) -> None:
        """From now on these are the pods of the node, by name, as policies know them.

        :raises DatapathError: some could not be attached as they are now, and stay as they were.
        """
        with self._lock:
            self._known = {each: party for party in pods.values() for each in party[0].addresses}
            error = self._recall(pods.values())
            changed: dict[tuple[str, str, Party], list[IPAddress]] = {}
            for each, attached in self._attached.items():
                party = self._known.get(each)
                if party is not None and party != attached.party:
                    changed.setdefault((attached.device, attached.pod_mac, party), []).append(each)
            for (device, pod_mac, party), addresses in changed.items():
                try:
                    self._attach(device, addresses, pod_mac, party)
                except DatapathError as failed:
                    error = failed
            if error is not None:
                raise error

    def _recall(self, parties: Iterable[Party]) -> DatapathError | None:
        """Who is attached already is known before the first of them gets a policy of this process.

        That one would otherwise shut out those who are attached after it.
        """
        there = {each for _, each in self._inherited}
        again = {workload: identity for workload, identity in parties if there.issuperset(workload.addresses)}
        try:
            if again and self._node.policy is not None:
                self._node.policy.learn(again)
        except DatapathError as error:
            return error
        return None

    def know_host(self, workload: Workload) -> None:
        """From now on this is the node itself; raises as :meth:`Node.attach_host`."""
        self._node.attach_host(workload)

    @property
    def unseen(self) -> frozenset[str]:
        """Devices behind which no network namespace is seen, though policies of requests are enforced."""
        return frozenset(self._unseen)

    @property
    def complete(self) -> bool:
        """Whether no pod is left as an earlier process attached it."""
        with self._lock:
            there = {(pod.device, each) for pod in self._node.pods for each in pod.addresses}
            return not self._inherited & there

    def _netns_behind(self, device: str, own: ExitStack) -> NetNs | None:
        if not self.config.l7:
            return None
        self._unseen.discard(device)
        netns = in_netns(self.config.netns, lambda: netns_behind(device))
        if netns is None:
            self._unseen.add(device)
            return None
        return own.enter_context(netns)

    def _by_party(self, addresses: Iterable[IPAddress]) -> dict[Party | None, list[IPAddress]]:
        found: dict[Party | None, list[IPAddress]] = {}
        for each in addresses:
            found.setdefault(self._known.get(each), []).append(each)
        return found

    def _show(self, device: str, workload: Workload) -> None:
        """Nobody is cut off for what is to be seen of him."""
        try:
            self._node.show(workload)
        except DatapathError as error:
            _log.error("not all of %s is visible: %s", workload.name, error, extra={"device": device})

    def _attach(self, device: str, addresses: list[IPAddress], pod_mac: str, party: Party | None) -> None:
        keep = party is None and all((device, each) in self._inherited for each in addresses)
        if not keep:
            workload, identity = party or (None, 0)
            with ExitStack() as own:
                self._node.attach_pod(
                    device,
                    addresses,
                    pod_mac=pod_mac,
                    identity=identity,
                    workload=workload,
                    netns=self._netns_behind(device, own),
                )
            if workload is not None:
                self._show(device, evolve(workload, addresses=addresses))
            self._inherited -= {(device, each) for each in addresses}
            if workload is None:
                _log.info("a pod is cut off until it is known who it is", extra={"device": device})
        self._attached |= {each: _Attached(device, pod_mac, party) for each in addresses}
