"""Ports of the node that lead to one of its pods."""

from __future__ import annotations

import pytest

from k8sdatapath.kube import NodeView
from k8sdatapath.model import Backend, FrontendKind
from tests.conformance.manifests import N1, Object, balanced, exposed, pod, read, translated


class TestHostPort:
    def test_leads_from_every_address_of_the_node_to_the_pod(self):
        found = read(pod(), node=N1)
        assert list(found) == ["192.0.2.11:80/TCP", "[2001:db8::11]:80/TCP"]
        four, six = found.values()
        assert (four.kind, four.name) == (FrontendKind.HOST_PORT, "default/edge:80")
        assert four.backends == (Backend("10.244.1.9", 8080),)
        assert six.backends == (Backend("fd00:10:244:1::9", 8080),)

    def test_several_addresses_are_one_service(self):
        two = NodeView("n1", addresses=["192.0.2.50", "192.0.2.11"], loopback=False)
        [found] = translated(pod(), node=two).services
        assert list(map(str, found.frontends)) == ["192.0.2.11:80/TCP", "192.0.2.50:80/TCP"]
        assert exposed(found) == ["192.0.2.50:80 (HOST_PORT)"]

    def test_and_for_the_node_itself_from_loopback(self):
        found = read(pod(), node=NodeView("n1", addresses=["192.0.2.11", "2001:db8::11"]))
        assert {frontend: exposed(each) for frontend, each in found.items()} == {
            "192.0.2.11:80/TCP": ["127.0.0.1:80 (HOST_PORT)"],
            "[2001:db8::11]:80/TCP": ["[::1]:80 (HOST_PORT)"],
        }

    def test_at_one_address_if_it_says_so(self):
        assert list(read(pod(port={"hostIP": "192.0.2.11"}), node=N1)) == ["192.0.2.11:80/TCP"]
        assert list(read(pod(port={"hostIP": "127.0.0.1"}), node=N1)) == ["127.0.0.1:80/TCP"]
        assert len(read(pod(port={"hostIP": "0.0.0.0"}), node=N1)) == 2

    @pytest.mark.parametrize(
        "of_no_use",
        [
            pod(node="n2"),
            pod(phase="Succeeded"),
            pod(phase="Failed"),
            pod(podIPs=[]),
            pod(spec={"hostNetwork": True}),
            pod(host_port=0),
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "edge-"}},
        ],
        ids=["elsewhere", "done", "failed", "no-address", "host-network", "no-host-port", "template"],
    )
    def test_of_pods_that_run_here_on_a_network_of_their_own(self, of_no_use: Object):
        assert read(of_no_use, node=N1) == {}

    def test_sidecars_have_them_too(self):
        sidecar = {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 1, "hostPort": 81}]}
        found = read(pod(spec={"initContainers": [sidecar, {"name": "i", "ports": None}]}), node=N1)
        assert "192.0.2.11:81/TCP" in found

    def test_the_later_of_two_pods_has_it(self):
        old = pod("old", metadata={"creationTimestamp": "2026-01-01T00:00:00Z", "uid": "b"})
        new = pod("new", metadata={"creationTimestamp": "2026-01-01T00:00:01Z", "uid": "a"})
        for order in (old, new), (new, old):
            found = translated(*order, node=N1)
            assert {each.name for each in found.services} == {"default/new:80"}
            assert (
                "default/old: 192.0.2.11:80/TCP (HOST_PORT) is left out: it belongs to default/new"
                in found.notes
            )

    def test_a_load_balancer_goes_before_and_leaves_the_other_addresses(self):
        node = NodeView("n1", addresses=["192.0.2.11", "192.0.2.50"], loopback=False)
        for order in (pod(), balanced("192.0.2.11")), (balanced("192.0.2.11"), pod()):
            found = {each.name: each for each in translated(*order, node=node).services}
            assert exposed(found["default/web"]) == ["192.0.2.11:80 (LOAD_BALANCER)"]
            assert list(map(str, found["default/edge:80"].frontends)) == ["192.0.2.50:80/TCP"]

    def test_and_loopback_where_there_is_one(self):
        node = NodeView("n1", addresses=["192.0.2.11"])
        found = translated(pod(), balanced("192.0.2.11"), node=node).services
        assert sorted(f"{each.name} {place}" for each in found for place in each.frontends) == [
            "default/edge:80 127.0.0.1:80/TCP",
            "default/edge:80 [::1]:80/TCP",
            "default/web 10.96.0.10:80/TCP",
            "default/web 192.0.2.11:80/TCP",
        ]

    def test_node_ports_are_kept_free(self):
        assert read(pod(host_port=30080), node=N1) == {}

    def test_without_a_node_they_are_counted(self):
        assert translated(pod()).ignored == {"Pod": 1}
