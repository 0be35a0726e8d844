"""The values everything else speaks in: no I/O, no kernel, no Kubernetes.

All are frozen and compared by value. Whoever holds one knows that it is sound: nonsense is refused
when it is built, with a :class:`~k8sdatapath.errors.ModelError`.
"""

from k8sdatapath.model.address import IPAddress, address, port
from k8sdatapath.model.service import Backend, BackendState, Frontend, Protocol, Selection, Service

__all__ = [
    "Backend",
    "BackendState",
    "Frontend",
    "IPAddress",
    "Protocol",
    "Selection",
    "Service",
    "address",
    "port",
]
