"""Random Services and pods that fight for addresses: whatever they ask for, a table can be made of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.kube import NodeView, Translation, translate
from k8sdatapath.kube.decode import decode
from k8sdatapath.model import FrontendKind, Scope, Service
from tests.support.service_maps import memory

NODE = NodeView("n1", "z1", ["192.0.2.11", "192.0.2.12", "2001:db8::11"])

policies = st.sampled_from(["Cluster", "Local"])
# few, so that they collide: of the node, of nobody, cluster IPs of others
addresses = st.lists(
    st.sampled_from(
        ["192.0.2.11", "203.0.113.1", "203.0.113.2", "10.96.0.1", "2001:db8::11", "2001:db8:1::1"]
    ),
    max_size=3,
)


@st.composite
def services(draw: st.DrawFn, number: int) -> dict[str, Any]:
    four, six = f"10.96.0.{number}", f"fd00:10:96::{number}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"s{number}"},
        "spec": {
            "type": draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"])),
            "clusterIPs": draw(st.sampled_from([[four], [six], [four, six]])),
            "ports": [
                {"name": "a", "port": 80, "nodePort": draw(st.sampled_from([0, 30000 + number]))},
                {"name": "b", "port": draw(st.sampled_from([81, 30001])), "protocol": "UDP"},
            ],
            "externalIPs": draw(addresses),
            "internalTrafficPolicy": draw(policies),
            "externalTrafficPolicy": draw(policies),
            "healthCheckNodePort": 32000 + number,
            "loadBalancerSourceRanges": draw(
                st.lists(st.sampled_from([" 10.0.0.0/8", "10.1.2.3/8", "fd00::/8"]), max_size=2)
            ),
        },
        "status": {"loadBalancer": {"ingress": [{"ip": each} for each in draw(addresses)]}},
    }


@st.composite
def slices(draw: st.DrawFn, number: int) -> dict[str, Any]:
    flags = st.sampled_from([True, False, None])
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"slice-{number}",
            "labels": {"kubernetes.io/service-name": draw(st.sampled_from(["s1", "s2", "s3"]))},
        },
        "addressType": "IPv4",
        "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8081, "protocol": "UDP"}],
        "endpoints": [
            {
                "addresses": [f"10.244.1.{draw(st.integers(1, 4))}"],
                "nodeName": draw(st.sampled_from(["n1", "n2"])),
                "conditions": {name: draw(flags) for name in ("ready", "serving", "terminating")},
                "hints": draw(st.sampled_from([None, {"forZones": [{"name": "z1"}]}, {"forZones": []}])),
            }
            for _ in range(draw(st.integers(0, 4)))
        ],
    }


@st.composite
def pods(draw: st.DrawFn, number: int) -> dict[str, Any]:
    host_ports = draw(st.lists(st.sampled_from([80, 81, 82, 30001]), max_size=2, unique=True))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"p{number}", "uid": str(number)},
        "spec": {
            "nodeName": draw(st.sampled_from(["n1", "n1", "n2"])),
            "containers": [{"ports": [{"containerPort": 8080, "hostPort": each} for each in host_ports]}],
        },
        "status": {"podIPs": [{"ip": f"10.244.1.{number}"}, {"ip": f"fd00:10:244:1::{number}"}]},
    }


@st.composite
def objects(draw: st.DrawFn) -> list[dict[str, Any]]:
    return [
        *(draw(services(number)) for number in range(1, draw(st.integers(1, 3)) + 1)),
        *(draw(slices(number)) for number in range(draw(st.integers(0, 3)))),
        *(draw(pods(number)) for number in range(1, draw(st.integers(0, 2)) + 1)),
    ]


def translated(objects: list[dict[str, Any]]) -> Translation:
    return translate((each for one in objects for each in decode(one, "", Counter())), NODE)


@given(objects(), st.randoms(use_true_random=False))
def test_whatever_they_ask_for(given: list[dict[str, Any]], random: Any):
    found = translated(given)
    owners = Counter(frontend for service in found.services for frontend in service.frontends)
    assert set(owners.values()) <= {1}
    for service in found.services:
        is_as_it_must_be(service)
    random.shuffle(given)
    again = translated(given)
    assert set(again.services) == set(found.services)
    assert set(again.notes) == set(found.notes)
    assert set(again.health_checks) == set(found.health_checks)
    kernel = memory(frontends=256, slots=1024, rows=256)
    with ServiceTable.bind(kernel) as table:
        table.plan(found.services).apply()
        assert table.plan(again.services).empty
    with ServiceTable.bind(kernel) as after:  # from nothing but what is in the maps
        assert set(map(told, after)) == set(map(told, found.services))


def told(service: Service) -> object:
    """What programs know of a service."""
    ranges = service.source_ranges
    policy = service.internal_local, service.external_local, ranges, service.kind, service.exposed
    return service.frontend, policy, *(service.candidates_in(scope) for scope in Scope)


def is_as_it_must_be(service: Service) -> None:
    if service.kind is FrontendKind.HOST_PORT:
        assert not NODE.reserves(service.port)
        assert {each.kind for each in service.exposed} <= {FrontendKind.HOST_PORT}
        return
    assert service.kind is FrontendKind.CLUSTER_IP
    for each in service.exposed:
        if each.kind is not FrontendKind.NODE_PORT and NODE.reserves(each.port):
            assert each.address not in NODE.addresses
    ranged = any(each.kind is FrontendKind.LOAD_BALANCER for each in service.exposed)
    assert ranged or not service.source_ranges
    cluster, local = (service.candidates_in(scope) for scope in Scope)
    assert bool(local) <= bool(cluster)
    for chosen in cluster, local:
        assert len({backend.state for backend in chosen}) <= 1  # nobody leaving beside somebody who stays
    if not (service.internal_local or service.external_local):
        assert local == ()
