"""The values everything else speaks in: no I/O, no kernel, no Kubernetes.

All are frozen and compared by value. Whoever holds one knows that it is sound: nonsense is refused
when it is built, with a :class:`~k8sdatapath.errors.ModelError`.
"""

from k8sdatapath.model.acceleration import Accelerated
from k8sdatapath.model.address import IPAddress, IPNetwork, address, network, port
from k8sdatapath.model.backend import Backend, BackendState, Scope
from k8sdatapath.model.frontend import Exposure, Frontend, FrontendKind, Protocol
from k8sdatapath.model.identity import Identity, Reserved
from k8sdatapath.model.labels import Label, LabelFilter, Labels, pod_labels
from k8sdatapath.model.masquerade import Masquerade
from k8sdatapath.model.peer import Peer
from k8sdatapath.model.service import Selection, Service

__all__ = [
    "Accelerated",
    "Backend",
    "BackendState",
    "Exposure",
    "Frontend",
    "FrontendKind",
    "IPAddress",
    "IPNetwork",
    "Identity",
    "Label",
    "LabelFilter",
    "Labels",
    "Masquerade",
    "Peer",
    "Protocol",
    "Reserved",
    "Scope",
    "Selection",
    "Service",
    "address",
    "network",
    "pod_labels",
    "port",
]
