"""Kubernetes objects as a source of services.

``documents``: text -> plain values. ``decode``: plain values -> ``objects``.
``translate``: objects -> services of the model, as one node has them: ``endpoints`` says who is given flows,
``frontends`` who has which address. ``static``: all of it, from files. ``health``: answers load balancers.

Live: ``events`` is what sources tell. ``watch`` is an API server as a source: a ``follower`` for each of its
``resources``, over a ``connection``, with ``patience``; ``wire`` and ``fast`` read what it sends.
``replay`` records sources, and plays them back.
``policy``: policies out of objects; ``policy_watch`` is an API server as a source of these.
``translator`` is ``translate`` for changes, ``local`` joins a source and that.
``event_writer`` tells the cluster what is wrong. ``ip_masq`` reads ip-masq-agent's configuration, ``egress``
says which pods leave under addresses of their own.
"""

from k8sdatapath.kube.event_writer import EventWriter
from k8sdatapath.kube.events import Batch, ObjectEvent, ObjectSource, in_asyncio
from k8sdatapath.kube.ip_masq import IpMasqConfig, IpMasqFile
from k8sdatapath.kube.local import NodeLocal, node_local
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.policy_watch import PolicyWatch
from k8sdatapath.kube.replay import Recorder, Replay
from k8sdatapath.kube.resources import Resource
from k8sdatapath.kube.static import StaticYaml
from k8sdatapath.kube.translate import HealthCheck, Translation, translate
from k8sdatapath.kube.translator import NodeDelta, ServiceTranslator
from k8sdatapath.kube.view import NodeView
from k8sdatapath.kube.watch import KubeWatch

__all__ = [
    "Batch",
    "EventWriter",
    "HealthCheck",
    "IpMasqConfig",
    "IpMasqFile",
    "KubeWatch",
    "NodeDelta",
    "NodeLocal",
    "NodeView",
    "ObjectEvent",
    "ObjectSource",
    "Patience",
    "PolicyWatch",
    "Recorder",
    "Replay",
    "Resource",
    "ServiceTranslator",
    "StaticYaml",
    "Translation",
    "in_asyncio",
    "node_local",
    "translate",
]
