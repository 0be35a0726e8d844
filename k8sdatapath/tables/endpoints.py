"""kd_endpoints: the pods of this node, and the devices that lead to them."""

from __future__ import annotations

from k8sdatapath.layout import mac, struct, u32

__all__ = ["EndpointRow"]


@struct
class EndpointRow:
    """``struct kd_endpoint``: where packets to a pod's address are delivered. Keyed by the address."""

    ifindex: u32
    identity: u32
    pod_mac: mac
    host_mac: mac
    policy: u32 = 0
