"""Who flows are between, and what decides about them, as flows name it."""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.model.message import Kind, Message, part

__all__ = ["Endpoint", "PolicyRef", "ServiceRef", "WorkloadRef"]


@frozen
class WorkloadRef(Message):
    """What a pod belongs to: ``WorkloadRef("web", "Deployment")``."""

    name: str = part(Kind.PLAIN, str)
    kind: str = part(Kind.PLAIN, str)


@frozen(kw_only=True)
class Endpoint(Message):
    """One end of a flow.

    :ivar id: the number of its policies on this node, 0 if it is elsewhere.
    :ivar labels: of its identity, with their sources, sorted.
    """

    id: int = part(Kind.PLAIN, int, name="ID")
    identity: int = part(Kind.PLAIN, int)
    namespace: str = part(Kind.PLAIN, str)
    labels: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    pod_name: str = part(Kind.PLAIN, str)
    workloads: tuple[WorkloadRef, ...] = part(Kind.ONE, WorkloadRef, many=True)
    cluster_name: str = part(Kind.PLAIN, str)


@frozen
class ServiceRef(Message):
    """The name of a service."""

    name: str = part(Kind.PLAIN, str)
    namespace: str = part(Kind.PLAIN, str)


@frozen
class PolicyRef(Message):
    """A policy whose rule has decided."""

    name: str = part(Kind.PLAIN, str)
    namespace: str = part(Kind.PLAIN, str)
    labels: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    revision: int = part(Kind.LONG)
    kind: str = part(Kind.PLAIN, str)
