"""Kubernetes objects as a source of services.

``documents``: text -> plain values. ``decode``: plain values -> ``objects``.
``translate``: objects -> services of the model, as one node has them: ``endpoints`` says who is given flows,
``frontends`` who has which address. ``static``: all of it, from files. ``health``: answers load balancers.

Live: ``events`` is what sources tell, ``translator`` is ``translate`` for changes, ``local`` joins the two.
"""

from k8sdatapath.kube.local import NodeLocal, node_local
from k8sdatapath.kube.static import StaticYaml
from k8sdatapath.kube.translate import HealthCheck, Translation, translate
from k8sdatapath.kube.translator import NodeDelta, ServiceTranslator
from k8sdatapath.kube.view import NodeView

__all__ = [
    "HealthCheck",
    "NodeDelta",
    "NodeLocal",
    "NodeView",
    "ServiceTranslator",
    "StaticYaml",
    "Translation",
    "node_local",
    "translate",
]
