"""What Service and EndpointSlice objects mean: the semantics that implementations get wrong, one by one."""

from __future__ import annotations

import itertools

import pytest

from k8sdatapath.errors import ManifestError
from k8sdatapath.model import Backend, BackendState, Selection, Service
from tests.conformance.manifests import Object, endpoint, part, places, read, service, translated, web


class TestConditions:
    """ready, serving, terminating: who is given new flows."""

    @pytest.mark.parametrize(
        ("ready", "serving", "terminating"), list(itertools.product((None, True, False), repeat=3))
    )
    def test_each_combination(self, ready, serving, terminating):
        found = web(service(), part(endpoint("10.244.1.2", ready, serving, terminating))).backends
        if ready in (None, True):
            assert found == (Backend("10.244.1.2", 8080),)
        else:
            # Serving, if unknown, is taken for true, as kube-proxy does.
            stands_in = serving in (None, True) and terminating is True
            assert found == (Backend("10.244.1.2", 8080, state=BackendState.TERMINATING, cluster=stands_in),)

    def test_no_conditions_at_all_is_ready(self):
        assert places(web(service(), part({"addresses": ["10.244.1.2"]}))) == ["10.244.1.2:8080"]

    def test_the_terminating_stand_in_only_while_none_is_ready(self):
        leaving, gone = endpoint("10.244.1.2", False, True, True), endpoint("10.244.1.3", False, False, True)
        assert [str(one) for one in web(service(), part(leaving, gone)).candidates] == ["10.244.1.2:8080"]
        back = endpoint("10.244.1.3", True, False, True)
        assert [str(one) for one in web(service(), part(leaving, back)).candidates] == ["10.244.1.3:8080"]

    def test_a_service_without_endpoints_stays_so_that_it_can_refuse(self):
        assert web(service()).backends == web(service(), part()).backends == ()


class TestPorts:
    """Service port and slice port meet by name and protocol, never by number."""

    def test_one_name_on_different_numbers(self):
        found = web(
            service(ports=[{"name": "web", "port": 80, "targetPort": "http"}]),
            part("10.244.1.2", name="a", ports=[{"name": "web", "port": 8080}]),
            part("10.244.2.2", name="b", ports=[{"name": "web", "port": 9090}]),
        )
        assert places(found) == ["10.244.1.2:8080", "10.244.2.2:9090"]

    def test_a_number_is_no_name(self):
        assert web(service(), part("10.244.1.2", ports=[{"name": "http", "port": 80}])).backends == ()

    def test_no_name_is_the_empty_name(self):
        for port in ({"port": 8080}, {"name": "", "port": 8080}, {"name": None, "port": 8080}):
            assert places(web(service(), part("10.244.1.2", ports=[port]))) == ["10.244.1.2:8080"]

    def test_tcp_and_udp_of_one_number(self):
        dns = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]
        slice_ports = [{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5354}]
        found = read(service(ports=dns), part("10.244.1.2", ports=slice_ports))
        assert places(found["10.96.0.10:53/UDP"]) == ["10.244.1.2:5353"]
        assert places(found["10.96.0.10:53/TCP"]) == ["10.244.1.2:5354"]

    def test_the_protocol_must_be_the_same(self):
        found = web(service(), part("10.244.1.2", ports=[{"port": 8080, "protocol": "UDP"}]))
        assert found.backends == ()

    def test_a_slice_port_without_number_is_passed_over_and_the_others_kept(self):
        ports = [{"name": "any"}, {"name": "a", "port": 8080}]
        found = web(service(ports=[{"name": "a", "port": 80}]), part("10.244.1.2", ports=ports))
        assert places(found) == ["10.244.1.2:8080"]

    def test_names_tell_the_ports_of_a_service_apart(self):
        found = read(service(namespace="shop", ports=[{"name": "a", "port": 80}, {"name": "b", "port": 81}]))
        assert [one.name for one in found.values()] == ["shop/web:a", "shop/web:b"]
        assert web(service(namespace="shop")).name == "shop/web"

    def test_sctp_is_served_where_its_endpoints_have_the_port_of_the_service(self):
        ports = [{"name": name, "port": port, "protocol": "SCTP"} for name, port in (("a", 80), ("b", 81))]
        ends = [
            {"name": "a", "port": 80, "protocol": "SCTP"},
            {"name": "b", "port": 8081, "protocol": "SCTP"},
        ]
        told = translated(service(ports=ports), part("10.244.1.2", ports=ends))
        assert [(str(each.frontend), places(each)) for each in told.services] == [
            ("10.96.0.10:80/SCTP", ["10.244.1.2:80"])
        ]
        assert told.notes == (
            "default/web: 10.96.0.10:81/SCTP (CLUSTER_IP) is left out: "
            "SCTP keeps its port, and cannot go on to 8081",
        )

    def test_one_number_for_three_protocols(self):
        protocols = ["TCP", "UDP", "SCTP"]
        ports = [{"name": each.lower(), "port": 80, "protocol": each} for each in protocols]
        found = read(service(ports=ports))
        assert list(found) == [f"10.96.0.10:80/{each}" for each in protocols]


class TestSlices:
    """A Service's endpoints are the union of its slices."""

    def test_an_endpoint_in_two_slices_is_one_backend(self):
        both = part("10.244.1.2", name="a"), part("10.244.1.2", "10.244.1.3", name="b")
        assert places(web(service(), *both)) == ["10.244.1.2:8080", "10.244.1.3:8080"]
        assert web(service(), both[1]) == web(service(), *both)

    @pytest.mark.parametrize("order", [1, -1])
    def test_where_two_copies_differ_the_ready_one_counts(self, order: int):
        leaving = part(endpoint("10.244.1.2", False, True, True), name="a")
        ready = part(endpoint("10.244.1.2", True), name="b")
        found = web(service(), *[leaving, ready][::order])
        assert found.backends == (Backend("10.244.1.2", 8080),)

    def test_slices_of_one_name_in_two_namespaces_are_two(self):
        found = read(
            service(namespace="a"),
            service(namespace="b", clusterIP="10.96.0.11"),
            part("10.244.1.2", namespace="a"),
            part("10.244.1.3", namespace="b"),
        )
        assert places(found["10.96.0.10:80/TCP"]) == ["10.244.1.2:8080"]
        assert places(found["10.96.0.11:80/TCP"]) == ["10.244.1.3:8080"]

    def test_a_slice_belongs_to_the_service_of_its_label_not_of_its_name(self):
        found = web(service(), part("10.244.1.2", name="shop-1"), part("10.244.1.3", name="web", of="shop"))
        assert places(found) == ["10.244.1.2:8080"]

    def test_a_slice_without_label_is_passed_over(self):
        assert web(service(), part("10.244.1.2", of=None)).backends == ()

    def test_the_order_of_objects_makes_no_difference(self):
        objects = [service(), part("10.244.1.3", "10.244.1.2", name="a"), part("10.244.1.4", name="b")]
        assert len({web(*order) for order in itertools.permutations(objects)}) == 1

    def test_of_several_addresses_the_first_is_used(self):
        three = {"addresses": ["10.244.1.9", "10.244.1.2", "10.244.1.3"]}
        assert places(web(service(), part(three))) == ["10.244.1.9:8080"]


class TestFamilies:
    """Every cluster IP is served by the slices of its own family."""

    def test_dual_stack(self):
        found = read(
            service(clusterIP="10.96.0.10", clusterIPs=["10.96.0.10", "fd00:10:96::a"]),
            part("10.244.1.2", name="four"),
            part("fd00:10:244:1::2", name="six", addressType="IPv6"),
        )
        assert {frontend: places(one) for frontend, one in found.items()} == {
            "10.96.0.10:80/TCP": ["10.244.1.2:8080"],
            "[fd00:10:96::a]:80/TCP": ["[fd00:10:244:1::2]:8080"],
        }

    def test_single_stack_ipv6(self):
        found = web(
            service(clusterIP="fd00:10:96::a"),
            part("10.244.1.2", name="four"),
            part("fd00:10:244:1::2", name="six", addressType="IPv6"),
        )
        assert places(found) == ["[fd00:10:244:1::2]:8080"]

    def test_fqdn_slices_are_passed_over(self):
        names = part("web.example", addressType="FQDN")
        assert places(web(service(), names, part("10.244.1.2", name="b"))) == ["10.244.1.2:8080"]

    def test_blanks_around_an_address_are_trimmed(self):
        assert places(web(service(clusterIP=" 10.96.0.10\n"), part("\t10.244.1.2 "))) == ["10.244.1.2:8080"]


class TestKinds:
    """Which Services have something to load-balance."""

    @pytest.mark.parametrize(
        "spec",
        [
            {"clusterIP": "None"},
            {"clusterIP": "None", "clusterIPs": ["None"]},
            {"clusterIP": None, "clusterIPs": ["None"]},
            {"clusterIP": "None", "ports": None},
            {"clusterIP": ""},
            {"clusterIP": None},
            {"clusterIP": None, "clusterIPs": []},
            {"type": "ExternalName", "externalName": "web.example", "clusterIP": None, "ports": None},
        ],
        ids=str,
    )
    def test_without_a_cluster_ip_there_is_nothing_to_do(self, spec: Object):
        assert read(service(**spec), part("10.244.1.2")) == {}

    @pytest.mark.parametrize(
        ("spec", "ignored"),
        [
            ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}, "NodePort part of a Service"),
            ({"type": "LoadBalancer"}, "LoadBalancer part of a Service"),
            ({"externalIPs": ["192.0.2.1"]}, "externalIPs"),
            ({"internalTrafficPolicy": "Local"}, "internalTrafficPolicy"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_of_the_others_the_cluster_ip_is_served_and_the_rest_counted(self, spec: Object, ignored: str):
        """So it is without a node; with one, see test_exposure.py."""
        found = translated(service(**spec))
        assert found.services == (Service("10.96.0.10", 80, name="default/web"),)
        assert found.ignored == {ignored: 1}

    def test_a_service_of_another_proxy_is_left_to_it(self):
        other = service()
        other["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "mesh"}  # type: ignore[index]
        assert read(other) == {}

    def test_selection_by_annotation(self):
        named = {
            "maglev": Selection.MAGLEV,
            "random": Selection.RANDOM,
            "round-robin": Selection.ROUND_ROBIN,
        }
        for said, selection in named.items():
            annotated = service()
            annotated["metadata"]["annotations"] = {"k8sdatapath.io/selection": said}  # type: ignore[index]
            assert web(annotated).selection is selection
        assert web(service()).selection is Selection.RANDOM


class TestFrontends:
    """A frontend has one owner at every moment."""

    def test_two_owners_are_refused_and_both_named(self):
        with pytest.raises(ManifestError) as caught:
            read(service(), service("zoo", ports=[{"name": "a", "port": 81}, {"name": "b", "port": 80}]))
        assert str(caught.value) == (
            "document 2 (Service default/zoo): spec.ports[1].port: "
            "10.96.0.10:80/TCP is taken by document 1 (Service default/web)"
        )

    def test_one_address_may_be_shared_port_by_port(self):
        udp = service("shop", ports=[{"port": 80, "protocol": "UDP"}])
        assert list(read(service(), udp)) == ["10.96.0.10:80/TCP", "10.96.0.10:80/UDP"]

    def test_an_address_that_moves_changes_its_owner_in_one_step(self):
        before = read(service("a"), service("b", clusterIP="10.96.0.11"))
        after = read(service("a", clusterIP="10.96.0.12"), service("b"))
        assert before["10.96.0.10:80/TCP"].name == "default/a"
        assert after["10.96.0.10:80/TCP"].name == "default/b"
