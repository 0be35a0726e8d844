"""What sources tell of objects: nodes and trigger times are read; an event knows which object it is of."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.decode import decode
from k8sdatapath.kube.events import ObjectEvent
from k8sdatapath.kube.objects import EndpointSlice, KubeNode
from k8sdatapath.kube.translate import translate
from k8sdatapath.model import address, network

NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
    "status": {
        "addresses": [
            {"type": "Hostname", "address": "n1"},
            {"type": "ExternalIP", "address": "203.0.113.11"},
            {"type": "InternalIP", "address": "192.0.2.11"},
            {"type": "InternalIP", "address": "2001:db8::11"},
        ]
    },
}


def read(document: dict[str, Any]) -> Any:
    [found] = decode(document, "test", Counter())
    return found


def test_a_node_is_read() -> None:
    addresses = tuple(address(each) for each in ("192.0.2.11", "2001:db8::11", "203.0.113.11"))
    networks = tuple(network(each) for each in ("10.244.1.0/24", "fd00:10:244:1::/64"))
    assert read(NODE) == KubeNode("n1", "z1", addresses, networks)
    assert read({**NODE, "spec": {}, "status": {}, "metadata": {"name": "n2"}}) == KubeNode("n2")


def test_an_address_of_a_node_that_is_none_is_refused() -> None:
    status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.300"}]}
    with pytest.raises(ManifestError, match=r"status.addresses\[0\].address"):
        read({**NODE, "status": status})


def test_nodes_ask_for_no_services() -> None:
    assert translate([read(NODE)]).ignored == {"Node": 1}


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("2026-11-23T00:00:00.5Z", 1795392000.5),
        ("2026-11-23T00:00:00.500000001Z", 1795392000.5),
        ("2026-11-23T01:00:00+01:00", 1795392000.0),
        ("2026-11-23T00:00:00", 0.0),
        ("yesterday", 0.0),
        (7, 0.0),
        (None, 0.0),
    ],
)
def test_the_time_of_the_trigger_is_read_and_makes_no_difference(written: object, seen: float) -> None:
    part = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
    }
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": written}
    found = read({**part, "metadata": {**part["metadata"], "annotations": annotations}})
    assert isinstance(found, EndpointSlice)
    assert found.triggered == seen
    assert found == read(part)


def test_an_event_knows_its_object() -> None:
    event = ObjectEvent("Service", "default", "web", None, 1.0)
    assert event.key == ("Service", "default", "web")
