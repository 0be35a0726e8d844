"""Kubernetes objects as a source of services.

``documents``: text -> plain values. ``decode``: plain values -> ``objects``.
``translate``: objects -> services of the model. ``static``: all of it, from files.
"""

from k8sdatapath.kube.static import StaticYaml
from k8sdatapath.kube.translate import translate

__all__ = ["StaticYaml", "translate"]
