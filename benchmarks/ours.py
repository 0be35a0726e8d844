"""The product as the benchmarks use it: models of the same services, tables and nodes of the right size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import kubeproxy
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.model import Backend, Service
from k8sdatapath.objects import ObjectSpec


def model(service: kubeproxy.Service) -> Service:
    """The same service in our terms."""
    backends = [Backend(ip, port) for ip, port in service.endpoints]
    return Service(service.vip, kubeproxy.SERVICE_PORT, backends=backends, name=service.name)


def sizes(services: int, endpoints: int) -> dict[str, int]:
    """Map sizes with a quarter to spare; the shipped ones where they do."""
    shipped = {name: entry.max_entries for name, entry in ObjectSpec.from_file("pod").maps.items()}
    frontends = max(shipped["kd_frontends"], services * 5 // 4)
    return {
        "kd_frontends": frontends,
        "kd_sets": 2 * frontends,
        "kd_backends": max(shipped["kd_backends"], services * endpoints * 5 // 4),
    }


@contextmanager
def service_table(services: int, endpoints: int) -> Iterator[ServiceTable]:
    """An empty table over the maps of a freshly loaded object."""
    spec = ObjectSpec.from_file("pod").with_maps(**sizes(services, endpoints))
    with spec.load() as loaded, ServiceTable.bind(loaded) as table:
        yield table
