"""Which resources of an API server are watched, and which part of each."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from attrs import evolve, field, frozen

from k8sdatapath.errors import SourceError, near_misses
from k8sdatapath.model.address import shown

__all__ = ["RESOURCES", "Resource"]

_PROXIED = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
"""What kube-proxy selects: neither headless, nor another proxy's."""


@frozen
class Resource:
    """A resource to watch: the stock ones have names, any other is told like this::

        Resource("cilium.io/v2", "CiliumIdentity", "ciliumidentities")

    :param api: its group and version, as ``apiVersion`` has it.
    :param kind: as events name it.
    :param plural: as the path has it.
    :param labels: label selector; likewise ``fields``.
    :param namespace: only this one; empty: all.
    :param raw: tell objects as they are, in a :class:`~k8sdatapath.kube.objects.KubeRaw`, rather than what
        a datapath wants to know of them.
    """

    api: str
    kind: str
    plural: str
    labels: str = field(default="", kw_only=True)
    fields: str = field(default="", kw_only=True)
    namespace: str = field(default="", kw_only=True)
    raw: bool = field(default=True, kw_only=True)

    @property
    def path(self) -> str:
        """Where the API server has it."""
        root = "api" if "/" not in self.api else "apis"
        within = f"namespaces/{quote(self.namespace, safe='')}/" if self.namespace else ""
        return f"/{root}/{self.api}/{within}{self.plural}"

    @property
    def selectors(self) -> dict[str, str]:
        """The part of the query that selects objects."""
        given = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {name: value for name, value in given.items() if value}


RESOURCES: Mapping[str, Resource] = {
    each.plural: each
    for each in (
        Resource("v1", "Service", "services", labels=_PROXIED, raw=False),
        Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", labels=_PROXIED, raw=False),
        Resource("v1", "Node", "nodes", raw=False),
        Resource("v1", "Pod", "pods", raw=False),
        Resource("v1", "Namespace", "namespaces"),
        Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    )
}
"""The stock ones by name. Services and slices are those that kube-proxy would handle."""


def resource(wanted: str | Resource, node: str = "") -> Resource:
    """The resource of a name; pods only those on ``node``, if it is told.

    :raises SourceError: no stock resource has this name.
    """
    if isinstance(wanted, Resource):
        return wanted
    if wanted not in RESOURCES:
        raise SourceError(f"no resource {shown(wanted)}: {near_misses(wanted, RESOURCES)}")
    found = RESOURCES[wanted]
    return evolve(found, fields=f"spec.nodeName={node}") if node and wanted == "pods" else found
