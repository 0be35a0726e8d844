"""What an agent does about policies and identities, told as Hubble's agent events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from k8sdatapath.model.address import IPAddress
from k8sdatapath.model.agent_event import (
    AgentEvent,
    AgentEventType,
    EndpointUpdate,
    IpcacheUpdate,
    PolicyUpdate,
)
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import Workload
from k8sdatapath.reconcile.policies import KnownPods, Policies

__all__ = ["ToldPolicies"]

Tell: TypeAlias = Callable[[AgentEvent], object]


class ToldPolicies:
    """Policies, each change of which is told once it is in force.

    The revision that is told counts the changes of policies since this began.
    """

    def __init__(self, policies: Policies, tell: Tell) -> None:
        self._policies, self._tell = policies, tell
        self._revision = 0
        self._known: dict[str, dict[IPAddress, int]] = {}

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Those in force."""
        return self._policies.policies

    def apply(self, policies: Iterable[Policy]) -> Any:
        """These and no others."""
        return self._changed(lambda: self._policies.apply(policies))

    def upsert(self, *policies: Policy) -> Any:
        """Add or replace."""
        return self._changed(lambda: self._policies.upsert(*policies))

    def remove(self, *names: str) -> Any:
        """Take away."""
        return self._changed(lambda: self._policies.remove(*names))

    def _changed(self, change: Callable[[], Any]) -> Any:
        before = dict(self._policies.policies)
        report = change()
        after = self._policies.policies
        gone = [(AgentEventType.POLICY_DELETED, before[name]) for name in before if name not in after]
        new = [
            (AgentEventType.POLICY_UPDATED, policy)
            for name, policy in after.items()
            if before.get(name) != policy
        ]
        for kind, policy in (*gone, *new):
            self._revision += 1
            self._tell(AgentEvent(kind, PolicyUpdate(_labels(policy), self._revision, len(policy.rules))))
        return report

    def learn(self, workloads: Mapping[Workload, int]) -> None:
        """Know workloads by their numbers."""
        self._policies.learn(workloads)
        self._tell_addresses(workloads.items())

    def forget(self, *names: str) -> None:
        """They are gone."""
        self._policies.forget(*names)
        self._tell_lost(names)

    def to_pods(self, follow: Callable[[KnownPods], object]) -> Callable[[KnownPods], object]:
        """The same follower of a node's own pods; who has come and gone is told as well."""
        known: dict[str, Workload] = {}

        def followed(pods: KnownPods) -> object:
            result = follow(pods)
            now = {name: workload for name, (workload, _) in pods.items()}
            gone = [name for name in known if name not in now]
            for name in gone:
                self._tell_pod(AgentEventType.ENDPOINT_DELETED, known[name])
            for name in now.keys() - known.keys():
                self._tell_pod(AgentEventType.ENDPOINT_CREATED, now[name])
            self._tell_lost(gone)
            self._tell_addresses(pods.values())
            known.clear()
            known.update(now)
            return result

        return followed

    def _tell_pod(self, kind: AgentEventType, pod: Workload) -> None:
        namespace, _, name = pod.name.rpartition("/")
        update = EndpointUpdate(labels=pod.labels, namespace=namespace, pod_name=name)
        self._tell(AgentEvent(kind, update))

    def _tell_addresses(self, workloads: Iterable[tuple[Workload, int]]) -> None:
        for workload, number in workloads:
            before, now = self._known.get(workload.name, {}), dict.fromkeys(workload.addresses, number)
            self._known[workload.name] = now
            for address in before.keys() - now.keys():
                self._tell_address(AgentEventType.IPCACHE_DELETED, workload.name, address, before[address])
            for address in now:
                old = before.get(address)
                if old != number:
                    kind = AgentEventType.IPCACHE_UPSERTED
                    self._tell_address(kind, workload.name, address, number, old)

    def _tell_lost(self, names: Iterable[str]) -> None:
        for name in names:
            for address, number in self._known.pop(name, {}).items():
                self._tell_address(AgentEventType.IPCACHE_DELETED, name, address, number)

    def _tell_address(
        self, kind: AgentEventType, name: str, address: IPAddress, identity: int, old: int | None = None
    ) -> None:
        namespace, _, pod = name.rpartition("/")
        network = f"{address}/{address.max_prefixlen}"
        update = IpcacheUpdate(network, identity, old_identity=old, namespace=namespace, pod_name=pod)
        self._tell(AgentEvent(kind, update))


def _labels(policy: Policy) -> tuple[str, ...]:
    """As Cilium labels the rules that it makes of objects; names here are ``kind namespace/name``."""
    kind, _, name = policy.name.rpartition(" ")
    namespace, _, bare = name.rpartition("/")
    told = {"derived-from": kind, "name": bare, "namespace": namespace}
    return tuple(f"k8s:io.cilium.k8s.policy.{key}={value}" for key, value in told.items() if value)
