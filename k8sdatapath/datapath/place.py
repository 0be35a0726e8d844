"""Where on its way a packet is asked about."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Place"]


class Place(StrEnum):
    """Where a packet is met."""

    POD = "pod"  #: as it comes from a pod of this node
    UPLINK = "uplink"  #: as it comes from elsewhere
    SOCKET = "socket"  #: before it is one: a process calls connect() or sendmsg()
    TO_POD = "to-pod"  #: as the node's stack sends it to a pod
    TO_UPLINK = "to-uplink"  #: as it leaves: from the node itself, or from a pod
    XDP = "xdp"  #: as it comes from elsewhere, in the driver of the uplink, before Place.UPLINK
