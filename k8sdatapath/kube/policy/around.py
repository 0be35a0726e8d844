"""What policies speak of without saying it themselves: groups of networks, Services, and DNS names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import define, field, frozen

from k8sdatapath.model import IPNetwork
from k8sdatapath.model.policy import Selector

__all__ = ["API_SERVERS", "KUBERNETES", "Around", "NetworkGroup", "PolicyService"]

KUBERNETES = "default", "kubernetes"
"""The Service of the API server."""
API_SERVERS = "API server"
"""What policies have asked for that mean it: not all Services and slices, of which there are many."""


@frozen
class NetworkGroup:
    """A CiliumCIDRGroup.

    :param labels: its own, ``source:key=value``, by which policies may select it.
    """

    name: str
    networks: tuple[IPNetwork, ...]
    labels: tuple[str, ...] = ()
    where: str = field(default="", eq=False)


@frozen
class PolicyService:
    """A Service, as far as a policy can name it.

    :param selector: of its pods; None: it has none, and its backends are ``addresses``.
    """

    namespace: str
    name: str
    selector: Mapping[str, str] | None = None
    addresses: tuple[IPNetwork, ...] = ()
    labels: tuple[str, ...] = ()


@define
class Around:
    """What is known while policies are read, and what one of them has asked for.

    :param groups: by name.
    :param services: by namespace and name.
    :param names: whether somebody tells which addresses DNS names have; policies by name are refused if not.
    :param requests: whether somebody looks at requests; policies that ask for some are refused if not.
    :param questions: whether somebody reads what name servers are asked; likewise.
    :param nodes: whether policies for nodes are enforced, by a host firewall; they are refused if not.
    :param complete: nothing is yet to come: to name what is not here is an error. Otherwise it is nobody, and
        ``missing`` says so.
    """

    groups: Mapping[str, NetworkGroup] = field(factory=dict)
    services: Mapping[tuple[str, str], PolicyService] = field(factory=dict)
    names: bool = False
    requests: bool = True
    nodes: bool = False
    questions: bool = field(default=True, kw_only=True)
    complete: bool = True
    asked: set[str] = field(factory=set, init=False)
    """Kinds of objects whose change may change what was read."""
    missing: list[str] = field(factory=list, init=False)

    def api_servers(self) -> tuple[IPNetwork, ...]:
        """Where the API server answers: what is behind the Service that every cluster has for it."""
        self.asked.add(API_SERVERS)
        found = self.services.get(KUBERNETES)
        return () if found is None or found.selector is not None else found.addresses

    def selected_groups(self, selector: Selector) -> Iterator[NetworkGroup]:
        """The groups whose labels fit."""
        self.asked.add("CiliumCIDRGroup")
        return (
            self.groups[name] for name in sorted(self.groups) if _fits(selector, self.groups[name].labels)
        )

    def selected_services(self, namespace: str, selector: Selector) -> Iterator[PolicyService]:
        """The services whose labels fit; of all namespaces, if none is told."""
        self.asked |= {"Service", "EndpointSlice"}
        for key in sorted(self.services):
            if namespace in ("", key[0]) and _fits(selector, self.services[key].labels):
                yield self.services[key]


def _fits(selector: Selector, labels: Iterable[str]) -> bool:
    return selector.matches(tuple(labels))
