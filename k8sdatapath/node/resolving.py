"""What a node makes of the answers of name servers: policies by name, and names of flows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8sdatapath.objects import Object

if TYPE_CHECKING:
    from k8sdatapath.datapath.dns_event import DnsEvent
    from k8sdatapath.datapath.dns_watcher import DnsAnswer, DnsWatcher
    from k8sdatapath.node.node import Node

__all__ = ["watch_names"]

_SHORTEST, _LONGEST = 10.0, 86400.0
"""Seconds that a name holds, whatever was answered: who was answered is to have the time to dial."""


def watch_names(node: Node, pod: Object) -> DnsWatcher:
    """Learn from what pods of a node are answered."""
    from k8sdatapath.datapath.dns_watcher import DnsWatcher  # large, and others have none

    def answered(answer: DnsAnswer) -> None:
        message, (asker, _) = answer.message, answer.asker
        if message.rcode or not message.addresses:
            return
        node.names.resolved(asker, message.name, message.addresses)  # before it is let through
        if node.policy is not None and node.policy.goes_by(asker, message.name):
            ttl = min(max(message.ttl, _SHORTEST), _LONGEST)
            node.policy.learn_name(message.name, message.addresses, ttl)

    def seen(event: DnsEvent) -> None:
        shown = node.config.dns_visibility or event.protocol in node._asking.get(event.client[0], ())
        if node.observer is not None and (event.held or shown):
            node.observer.tell(event)

    return DnsWatcher.bind(pod, answered, on_event=seen)
