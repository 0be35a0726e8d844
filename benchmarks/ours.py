"""The product as the benchmarks use it: models of the same services, tables and nodes of the right size."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

from benchmarks import kubeproxy
from benchmarks.topology import CLIENT, SERVERS, Wire
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.model import Backend, Service
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.tables.events import Level


def model(service: kubeproxy.Service) -> Service:
    """The same service in our terms."""
    backends = [Backend(ip, port) for ip, port in service.endpoints]
    return Service(service.vip, kubeproxy.SERVICE_PORT, backends=backends, name=service.name)


def capacity(services: int, endpoints: int) -> Capacity:
    """The stock sizes where they do, else a quarter to spare."""
    stock = Capacity()
    return Capacity(
        services=max(stock.services, services * 5 // 4),
        backends=max(stock.backends, services * endpoints * 5 // 4),
    )


@contextmanager
def service_table(services: int, endpoints: int) -> Iterator[ServiceTable]:
    """An empty table over the maps of a freshly loaded object."""
    spec = ObjectSpec.from_file("pod").with_maps(**capacity(services, endpoints).max_entries)
    networks = [kubeproxy.SERVICE_NETWORK]
    with spec.load() as loaded, ServiceTable.bind(loaded, service_networks=networks) as table:
        yield table


def node_on(running: ExitStack, wire: Wire, services: int, *, flows: Level | None = None) -> Node:
    """A stock node between the wire's client and server, with room for so many services.

    :param flows: how much its programs tell.
    """
    netns = running.enter_context(NetNs.open(wire.node))
    config = NodeConfig(
        name=wire.name,
        netns=netns,
        service_networks=[kubeproxy.SERVICE_NETWORK],
        capacity=capacity(services, 3),
        flows=flows,
    )
    node = running.enter_context(Node.open(config))
    node.attach_pod("c0", [ip_address(CLIENT)], pod_mac=wire.client_mac)
    node.attach_pod("s0", [ip_address(ip) for ip in SERVERS], pod_mac=wire.server_mac)
    return node


def fill(node: Node, wanted: Sequence[kubeproxy.Service]) -> float:
    """Fill its table; seconds that this took."""
    services = [model(service) for service in wanted]
    start = time.perf_counter()
    node.services.plan(services).apply()
    return time.perf_counter() - start


def open_node(running: ExitStack, wire: Wire, wanted: Sequence[kubeproxy.Service]) -> float:
    """The same with its table filled; seconds that the fill took."""
    return fill(node_on(running, wire, len(wanted)), wanted)
