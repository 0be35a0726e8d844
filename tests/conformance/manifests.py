"""Kubernetes objects as tests write them, and what is made of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from k8sdatapath.kube import NodeView, Translation, translate
from k8sdatapath.kube.decode import decode
from k8sdatapath.model import Service

Object = dict[str, object]
N1 = NodeView("n1", "z1", ["192.0.2.11", "2001:db8::11"], loopback=False)


def service(name: str = "web", namespace: str = "default", **spec: object) -> Object:
    whole = {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]} | spec
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": whole,
    }


def part(
    *endpoints: object,
    name: str = "web-1",
    of: str | None = "web",
    namespace: str = "default",
    **more: object,
) -> Object:
    """An EndpointSlice; an endpoint is an address, or a mapping."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of} if of else {},
        },
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [each]} if isinstance(each, str) else each for each in endpoints],
    } | more


def endpoint(
    address: str, ready: object = None, serving: object = None, terminating: object = None, **more: object
) -> Object:
    return {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    } | more


def balanced(*ingress: object, ports: object = ({"port": 80},), **more: Any) -> Object:
    """A LoadBalancer; ingress: addresses, or mappings."""
    status = {"ingress": [{"ip": each} if isinstance(each, str) else each for each in ingress]}
    found = service(more.pop("name", "web"), **{"type": "LoadBalancer", "ports": list(ports)} | more)  # type: ignore[call-overload]
    return found | {"status": {"loadBalancer": status}}


def pod(name: str = "edge", host_port: int = 80, node: str = "n1", **more: Any) -> Object:
    ports = [
        {"containerPort": 8080, "hostPort": host_port} | more.pop("port", {}),
        {"containerPort": 9090},
    ]
    spec = {"nodeName": node, "containers": [{"name": "edge", "ports": ports}]} | more.pop("spec", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name} | more.pop("metadata", {}),
        "spec": spec,
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.9"}, {"ip": "fd00:10:244:1::9"}]} | more,
    }


def translated(*objects: Object, node: NodeView | None = None) -> Translation:
    decoded = [
        each for number, one in enumerate(objects, 1) for each in decode(one, f"document {number}", Counter())
    ]
    return translate(decoded, node)


def read(*objects: Object, node: NodeView | None = None) -> dict[str, Service]:
    """The services by frontend."""
    return {str(each.frontend): each for each in translated(*objects, node=node).services}


def places(service: Service) -> list[str]:
    return [str(backend) for backend in service.backends]


def exposed(found: Service) -> list[str]:
    return [str(each) for each in found.exposed]


def web(*objects: Object, node: NodeView | None = None) -> Service:
    [only] = read(*objects, node=node).values()
    return only
