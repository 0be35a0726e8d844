"""kd_sock: what the socket load balancer remembers of a socket."""

from __future__ import annotations

from k8sdatapath.layout import addr, be16, struct, u32

__all__ = ["SockRow"]


@struct
class SockRow:
    """``struct kd_sock``: the translation that a socket last went through. ``backend`` is a full id."""

    frontend_addr: addr
    backend_addr: addr
    backend: u32
    service: u32
    frontend_port: be16
    backend_port: be16
