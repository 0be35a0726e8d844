"""What an agent has done, as Hubble tells it."""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.model.flow_enums import AgentEventType
from k8sdatapath.model.message import Kind, Message, part

__all__ = [
    "AgentEvent",
    "AgentEventType",
    "EndpointUpdate",
    "IpcacheUpdate",
    "PolicyUpdate",
    "TimeNotification",
    "ToldAgentEvent",
]


@frozen
class TimeNotification(Message):
    """When it was, in nanoseconds since 1970."""

    time: int = part(Kind.TIME)


@frozen
class PolicyUpdate(Message):
    """Policies that are other ones now."""

    labels: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    revision: int = part(Kind.LONG)
    rule_count: int = part(Kind.LONG)


@frozen
class EndpointUpdate(Message):
    """A pod that has come or gone."""

    id: int = part(Kind.LONG)
    labels: tuple[str, ...] = part(Kind.PLAIN, str, many=True)
    error: str = part(Kind.PLAIN, str)
    pod_name: str = part(Kind.PLAIN, str)
    namespace: str = part(Kind.PLAIN, str)


@frozen
class IpcacheUpdate(Message):
    """An address whose identity is another one now."""

    cidr: str = part(Kind.PLAIN, str)
    identity: int = part(Kind.PLAIN)
    old_identity: int | None = part(Kind.PLAIN, optional=True)
    host_ip: str = part(Kind.PLAIN, str)
    old_host_ip: str = part(Kind.PLAIN, str)
    encrypt_key: int = part(Kind.PLAIN)
    namespace: str = part(Kind.PLAIN, str)
    pod_name: str = part(Kind.PLAIN, str)


@frozen
class AgentEvent(Message):
    """One thing that an agent has done."""

    type: AgentEventType | int = part(Kind.ENUM, AgentEventType)
    notification: TimeNotification | PolicyUpdate | EndpointUpdate | IpcacheUpdate | None = part(
        Kind.CHOICE,
        {
            "agent_start": TimeNotification,
            "policy_update": PolicyUpdate,
            "endpoint_update": EndpointUpdate,
            "ipcache_update": IpcacheUpdate,
        },
    )


@frozen
class ToldAgentEvent(Message):
    """A line of what agents have done."""

    agent_event: AgentEvent | None = part(Kind.ONE, AgentEvent)
    node_name: str = part(Kind.PLAIN, str)
    time: int = part(Kind.TIME)
