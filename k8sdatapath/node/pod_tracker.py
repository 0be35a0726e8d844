"""Keeps the pods of a node in its datapath, as their devices and addresses come and go."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import frozen

from k8sdatapath.errors import DatapathError, DeviceGoneError
from k8sdatapath.model import IPAddress
from k8sdatapath.net.pod_devices import DevicePattern, NotFound, PodDevice, PodDevices, pod_links
from k8sdatapath.net.rtnetlink import LinkChanges
from k8sdatapath.programs.base import in_netns
from k8sdatapath.resource import Resource

if TYPE_CHECKING:
    from k8sdatapath.node.known_pods import IdentifiedPods
    from k8sdatapath.node.node import Node

__all__ = ["PodStatus", "PodTracker"]

_log = logging.getLogger(__name__)
_NO_MAC = "00:00:00:00:00:00"
_STILL = 0.02
"""Seconds without a change before a change is looked at: a pod's wiring is several."""
_PATIENCE = 10
"""How often that is waited for, where changes do not end."""
_RETRY, _CHECK = 1.0, 30.0
"""Seconds after which what is not as it should be is tried again, and what is is looked at."""


@frozen
class PodStatus:
    """How it stands with an address of a pod.

    :ivar pod: whose it is, as in ``namespace/name``; empty where only a route tells of it.
    :ivar device: the node's end of its veth; empty while ``problem`` says why none is known.
    """

    address: IPAddress
    pod: str
    device: str
    problem: str = ""


class PodTracker(Resource):
    """Finds the devices of pods and attaches them to a node, again whenever devices or routes change.

    Pods are those addresses that have a route of their own to a device that may be a pod's, and those that
    :meth:`update` was told of. One thread does all the work::

        with PodTracker(node, DevicePattern(("v*",), uplinks=node.config.uplinks)) as pods:
            pods.update({"shop/web-1": [ip_address("10.244.1.2")]}, complete=True)

    :param node: it must outlive the tracker; or what tells policies who its pods are.
    :param complete: whether nobody will tell of pods by :meth:`update`. If False, what an earlier process has
        attached stays until an update is complete.
    :param isolate: devices that are held to be pods' (:func:`~k8sdatapath.net.pod_devices.pod_links`) are cut
        off as soon as they are there, before it is known which addresses are behind them, and so is what is
        left behind the device of a pod that has gone. For a node that enforces policies.
    """

    def __init__(
        self,
        node: Node | IdentifiedPods,
        pattern: DevicePattern,
        *,
        complete: bool = False,
        isolate: bool = False,
    ) -> None:
        self._node = node
        self._pattern = pattern
        self._complete = complete
        self._isolates = isolate
        self._isolated: frozenset[str] = frozenset()
        self._left: set[str] = set()  # devices whose pods have gone
        self._pods: dict[IPAddress, str] = {}
        self._attached: dict[IPAddress, PodDevice] = {}
        self._statuses: tuple[PodStatus, ...] = ()
        self._problem = ""
        self._whole = False
        self._lock = threading.Lock()
        self._looked = threading.Condition(self._lock)
        self._asked, self._answered = 1, 0  # the first look is asked for by being made
        self._closed = False
        self._changes = in_netns(node.config.netns, LinkChanges)
        self._thread = threading.Thread(target=self._run, name="pod tracker", daemon=True)
        self._thread.start()

    def update(self, pods: Mapping[str, Iterable[IPAddress]], *, complete: bool) -> None:
        """From now on these are the pods of the node, by name, besides those that routes tell of.

        :param complete: whether they are all; if not, what is attached stays.
        """
        with self._lock:
            self._pods = {address: name for name, addresses in pods.items() for address in addresses}
            self._complete = complete
            self._asked += 1
        self._changes.wake()

    def wait(self, timeout: float) -> bool:
        """Wait until the pods of the last :meth:`update` have been looked for; False if that takes longer."""
        with self._looked:
            wanted = self._asked
            return self._looked.wait_for(lambda: self._answered >= wanted or self._closed, timeout)

    @property
    def statuses(self) -> tuple[PodStatus, ...]:
        """How it stands with each address."""
        return self._statuses

    @property
    def problem(self) -> str:
        """Why the last look failed altogether; empty if it did not."""
        return self._problem

    @property
    def complete(self) -> bool:
        """Whether all pods were told of once, and have been looked for."""
        return self._whole

    @property
    def alive(self) -> bool:
        """Whether it is at work."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop looking. What is attached stays attached."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._changes.wake()
        self._thread.join()
        self._changes.close()

    def __repr__(self) -> str:
        missing = sum(1 for status in self._statuses if status.problem)
        return f"<PodTracker {len(self._attached)} addresses attached, {missing} problems>"

    # -- in the thread of its own --

    def _run(self) -> None:
        while not self._closed:
            asked = self._asked
            try:
                self._isolate()
                self._look()
                problem = ""
            except DatapathError as error:
                problem = str(error)
            except OSError as error:
                problem = f"the kernel cannot be asked: {error}"
            if problem and problem != self._problem:
                _log.error("looking for pods failed: %s", problem)
            self._problem = problem
            with self._looked:
                self._answered = asked
                self._looked.notify_all()
            troubled = problem or any(status.problem for status in self._statuses)
            self._changes.wait(_RETRY if troubled else _CHECK)
            for _ in range(_PATIENCE):
                with suppress(DatapathError, OSError):  # told by the look that follows
                    self._isolate()
                if not self._changes.wait(_STILL):
                    break

    def _isolate(self) -> None:
        """Cut off what is new, and let go what is seen to be no pod's after all."""
        if not self._isolates:
            return
        there = in_netns(self._node.config.netns, lambda: pod_links(self._pattern))
        found = {device.name for device in self._attached.values()}
        for device in sorted(self._isolated - there - found - self._left):
            self._node.detach_pod(device, ())
            _log.info("a device is not cut off any more", extra={"device": device})
        known = self._isolated | found
        done = set(known & there)
        for device in sorted(there - known):
            try:
                self._node.attach_pod(device, (), pod_mac=_NO_MAC)
            except DeviceGoneError:
                continue
            done.add(device)
            _log.info("a device is cut off until it is known whose it is", extra={"device": device})
        self._isolated = frozenset(done)

    def _look(self) -> None:
        with self._lock:
            pods, complete = dict(self._pods), self._complete
        seen = in_netns(self._node.config.netns, lambda: PodDevices.look(self._pattern))
        found = dict(seen.routed) | {address: seen.find(address) for address in pods}
        wanted = {address: each for address, each in found.items() if isinstance(each, PodDevice)}
        problems = {address: each.reason for address, each in found.items() if isinstance(each, NotFound)}
        self._detach(seen, wanted, complete=complete)
        problems |= self._attach(wanted)
        self._whole = self._whole or complete
        before = {status.address: status for status in self._statuses}
        self._statuses = tuple(
            PodStatus(
                address,
                pods.get(address, ""),
                self._attached[address].name if address in self._attached else "",
                problems.get(address, ""),
            )
            for address in found
        )
        for status in self._statuses:
            if status != before.get(status.address):
                _tell(status)

    def _attach(self, wanted: Mapping[IPAddress, PodDevice]) -> dict[IPAddress, str]:
        """Attach what is not yet as it is wanted; returns what could not be, and why."""
        changed: defaultdict[PodDevice, list[IPAddress]] = defaultdict(list)
        for address, device in wanted.items():
            if self._attached.get(address) != device:
                changed[device].append(address)
        problems = {}
        for device, addresses in changed.items():
            try:
                self._node.attach_pod(device.name, addresses, pod_mac=device.pod_mac)
            except DatapathError as error:
                problems.update(dict.fromkeys(addresses, str(error)))
            else:
                self._attached.update(dict.fromkeys(addresses, device))
                self._left.discard(device.name)
        return problems

    def _detach(self, seen: PodDevices, wanted: Mapping[IPAddress, PodDevice], *, complete: bool) -> None:
        """Detach what is wanted elsewhere or not at all; until all pods are told, only what is certain."""
        self._left = {device for device in self._left if seen.has(device)}
        used = {device.name for device in wanted.values()} | self._isolated | self._left
        for pod in self._node.pods:
            over = complete or not seen.has(pod.device)
            moved = {each for each in pod.addresses if each in wanted and wanted[each].name != pod.device}
            gone = moved | {each for each in pod.addresses if over and each not in wanted}
            if gone or (over and pod.device and pod.device not in used):
                self._node.detach_pod(pod.device, gone)
                if gone and self._isolates:
                    self._left.add(pod.device)
                for address in gone:
                    self._attached.pop(address, None)
                _log.info("pod detached", extra={"device": pod.device, "addresses": _shown(gone)})


def _shown(addresses: Iterable[IPAddress]) -> list[str]:
    return sorted(map(str, addresses))


def _tell(status: PodStatus) -> None:
    about = {"address": str(status.address), "pod": status.pod, "device": status.device}
    if status.problem:
        _log.warning("pod is not in the datapath: %s", status.problem, extra=about)
    else:
        _log.info("pod attached", extra=about)
