"""What makes a Service reachable beyond its cluster IP, and by which policy: manifests for one node."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Network
from typing import Any

import pytest

from k8sdatapath.errors import ManifestError, ModelError
from k8sdatapath.kube import HealthCheck, NodeView
from k8sdatapath.model import Scope, Service
from tests.conformance.manifests import (
    N1,
    Object,
    balanced,
    endpoint,
    exposed,
    part,
    pod,
    read,
    service,
    translated,
    web,
)

DUAL = {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:10:96::a"]}


def node_port(number: int | None = 30080, **spec: Any) -> Object:
    return service(**{"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]} | spec)


def at(local: str, remote: str) -> Object:
    """A slice: one endpoint here, 10.244.1.2, one elsewhere, 10.244.2.2, with conditions R, S, T; -: none."""
    both = ("10.244.1.2", "n1", local), ("10.244.2.2", "n2", remote)
    told = [
        (ip, node, ["R" in flags, "S" in flags, "T" in flags]) for ip, node, flags in both if flags != "-"
    ]
    return part(*(endpoint(ip, *flags, nodeName=node) for ip, node, flags in told))


def candidates(found: Service, scope: Scope) -> list[str]:
    return [str(each.address) for each in found.candidates_in(scope)]


class TestNodePort:
    def test_is_at_every_address_of_the_node(self):
        two = NodeView("n1", addresses=["192.0.2.11", "192.0.2.50"], loopback=False)
        assert exposed(web(node_port(), node=two)) == [
            "192.0.2.11:30080 (NODE_PORT)",
            "192.0.2.50:30080 (NODE_PORT)",
        ]

    def test_or_at_those_in_chosen_networks(self):
        two = NodeView("n1", "", ["192.0.2.11", "198.51.100.1", "2001:db8::11"], ["198.51.100.0/24"])
        assert exposed(web(node_port(), node=two)) == ["198.51.100.1:30080 (NODE_PORT)"]

    def test_and_for_the_node_itself_at_loopback(self):
        everywhere = NodeView("n1", addresses=["192.0.2.11", "2001:db8::11"])
        assert [exposed(each) for each in read(node_port(**DUAL), node=everywhere).values()] == [
            ["127.0.0.1:30080 (NODE_PORT)", "192.0.2.11:30080 (NODE_PORT)"],
            ["[::1]:30080 (NODE_PORT)", "[2001:db8::11]:30080 (NODE_PORT)"],
        ]
        assert everywhere.node_port_addresses == everywhere.addresses  # where others can dial

    def test_not_at_loopback_if_the_chosen_networks_leave_it_out_or_the_node_does_not_want_it(self):
        addresses = ["192.0.2.11"]
        for node, more in (
            (NodeView("n1", "", addresses, ["192.0.2.0/24"]), []),
            (NodeView("n1", "", addresses, loopback=False), []),
            (NodeView("n1", "", addresses, ["192.0.2.0/24", "127.0.0.0/8"]), ["127.0.0.1:30080 (NODE_PORT)"]),
        ):
            assert exposed(web(node_port(), node=node)) == [*more, "192.0.2.11:30080 (NODE_PORT)"]

    def test_of_the_families_that_the_service_has(self):
        assert exposed(web(node_port(), node=N1)) == ["192.0.2.11:30080 (NODE_PORT)"]
        found = read(node_port(**DUAL), node=N1)
        assert {frontend: exposed(each) for frontend, each in found.items()} == {
            "10.96.0.10:80/TCP": ["192.0.2.11:30080 (NODE_PORT)"],
            "[fd00:10:96::a]:80/TCP": ["[2001:db8::11]:30080 (NODE_PORT)"],
        }

    def test_one_number_for_tcp_and_one_for_udp_may_be_the_same(self):
        ports = [
            {"name": "a", "port": 53, "nodePort": 30053},
            {"name": "b", "port": 53, "nodePort": 30053, "protocol": "UDP"},
        ]
        found = read(service(type="NodePort", ports=ports), node=N1)
        assert [str(each.frontends[1]) for each in found.values()] == [
            "192.0.2.11:30053/TCP",
            "192.0.2.11:30053/UDP",
        ]

    def test_a_loadbalancer_has_them_too(self):
        assert exposed(web(balanced(ports=[{"port": 80, "nodePort": 30080}]), node=N1)) == [
            "192.0.2.11:30080 (NODE_PORT)"
        ]

    def test_a_node_port_of_a_clusterip_service_is_none(self):
        assert exposed(web(node_port(type="ClusterIP"), node=N1)) == []

    def test_without_a_number_there_is_none_and_a_note_says_so(self):
        for number in (None, 0):
            found = translated(node_port(number), node=N1)
            assert exposed(found.services[0]) == []
            assert found.notes == ("default/web: port 80 has no nodePort, as an API server would give it",)

    def test_two_services_with_one_are_refused(self):
        with pytest.raises(ManifestError) as caught:
            read(node_port(), {**node_port(clusterIP="10.96.0.11"), "metadata": {"name": "zoo"}}, node=N1)
        assert str(caught.value) == (
            "document 2 (Service default/zoo): spec.ports[0].nodePort: "
            "192.0.2.11:30080/TCP is taken by document 1 (Service default/web)"
        )


class TestLoadBalancer:
    def test_every_ingress_address(self):
        assert exposed(web(balanced("203.0.113.1", "203.0.113.2"), node=N1)) == [
            "203.0.113.1:80 (LOAD_BALANCER)",
            "203.0.113.2:80 (LOAD_BALANCER)",
        ]

    @pytest.mark.parametrize(("mode", "programmed"), [("VIP", 1), (None, 1), ("Proxy", 0)])
    def test_one_that_is_a_proxy_is_not_ours(self, mode: str | None, programmed: int):
        assert len(exposed(web(balanced({"ip": "203.0.113.1", "ipMode": mode}), node=N1))) == programmed

    @pytest.mark.parametrize("strange", ["127.0.0.1", "169.254.1.1", "::1", "0.0.0.0"])
    def test_an_address_that_is_nobodys_to_balance_is_left_out(self, strange: str):
        assert exposed(web(balanced(strange, "203.0.113.2"), node=N1)) == ["203.0.113.2:80 (LOAD_BALANCER)"]

    def test_a_hostname_is_no_address(self):
        assert exposed(web(balanced({"hostname": "lb.example"}), node=N1)) == []

    def test_status_of_a_service_that_is_none_any_more_is_old(self):
        assert exposed(web(balanced("203.0.113.1", type="ClusterIP"), node=N1)) == []

    def test_addresses_go_by_family(self):
        found = read(balanced("203.0.113.1", "2001:db8:1::1", **DUAL), node=N1)
        assert exposed(found["10.96.0.10:80/TCP"]) == ["203.0.113.1:80 (LOAD_BALANCER)"]
        assert exposed(found["[fd00:10:96::a]:80/TCP"]) == ["[2001:db8:1::1]:80 (LOAD_BALANCER)"]
        assert exposed(web(balanced("2001:db8:1::1"), node=N1)) == []

    def test_external_ips(self):
        found = web(service(externalIPs=["198.51.100.1", "2001:db8::1", " 198.51.100.2 "]), node=N1)
        assert exposed(found) == ["198.51.100.1:80 (EXTERNAL_IP)", "198.51.100.2:80 (EXTERNAL_IP)"]

    def test_one_address_as_both_is_a_load_balancers(self):
        found = translated(balanced("203.0.113.1", externalIPs=["203.0.113.1"]), node=N1)
        assert exposed(found.services[0]) == ["203.0.113.1:80 (LOAD_BALANCER)"]
        assert found.notes == ()


class TestSourceRanges:
    def test_are_trimmed_and_go_by_family(self):
        ranges = ["  10.0.0.0/8 ", "fd00::/8"]
        found = read(
            balanced("203.0.113.1", "2001:db8:1::1", loadBalancerSourceRanges=ranges, **DUAL), node=N1
        )
        assert list(map(str, found["10.96.0.10:80/TCP"].source_ranges)) == ["10.0.0.0/8"]
        assert list(map(str, found["[fd00:10:96::a]:80/TCP"].source_ranges)) == ["fd00::/8"]

    def test_a_family_that_none_names_is_open_to_all_and_a_note_says_so(self):
        restricted = balanced("203.0.113.1", "2001:db8:1::1", loadBalancerSourceRanges=["10.0.0.0/8"], **DUAL)
        found = translated(restricted, node=N1)
        assert [each.source_ranges for each in found.services] == [(IPv4Network("10.0.0.0/8"),), ()]
        assert found.notes == ("default/web: its source ranges name no IPv6: all of IPv6 may use it",)

    def test_without_a_load_balancers_address_there_is_nothing_to_restrict(self):
        found = translated(node_port(loadBalancerSourceRanges=["10.0.0.0/8"]), node=N1)
        assert found.services[0].source_ranges == ()
        assert found.notes == ()


class TestTrafficPolicy:
    LOCAL = {"externalTrafficPolicy": "Local"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("local", "remote", "cluster", "own"),
        [
            ("R", "R", ["10.244.1.2", "10.244.2.2"], ["10.244.1.2"]),
            ("ST", "R", ["10.244.2.2"], ["10.244.1.2"]),
            ("T", "R", ["10.244.2.2"], []),
            ("-", "R", ["10.244.2.2"], []),
            ("ST", "-", ["10.244.1.2"], ["10.244.1.2"]),
            ("-", "ST", ["10.244.2.2"], []),
            ("-", "T", [], []),
        ],
    )
    def test_external_local(self, local: str, remote: str, cluster: list[str], own: list[str]):
        found = web(node_port(**self.LOCAL), at(local, remote), node=N1)
        assert (found.external_local, found.internal_local) == (True, False)
        assert candidates(found, Scope.CLUSTER) == cluster
        assert candidates(found, Scope.LOCAL) == own

    def test_external_local_of_what_is_not_external_is_nothing(self):
        found = web(service(**self.LOCAL), at("R", "R"), node=N1)
        assert (found.external_local, candidates(found, Scope.LOCAL)) == (False, [])

    @pytest.mark.parametrize("more", [{"externalIPs": ["198.51.100.1"]}, {}])
    def test_internal_local(self, more: Object):
        found = web(service(internalTrafficPolicy="Local", **more), at("R", "R"), node=N1)
        assert (found.external_local, found.internal_local) == (False, True)
        assert candidates(found, Scope.CLUSTER) == ["10.244.1.2", "10.244.2.2"]
        assert candidates(found, Scope.LOCAL) == ["10.244.1.2"]

    def test_what_is_elsewhere_stays_known_so_that_none_here_is_told_from_none_at_all(self):
        found = web(service(internalTrafficPolicy="Local"), at("-", "R"), node=N1)
        assert found.candidates
        assert candidates(found, Scope.LOCAL) == []

    def test_hints_shape_the_cluster_set_only(self):
        there = endpoint("10.244.2.2", nodeName="n2", hints={"forZones": [{"name": "z1"}]})
        here = endpoint("10.244.1.2", nodeName="n1", hints={"forZones": [{"name": "z2"}]})
        found = web(node_port(**self.LOCAL), part(here, there), node=N1)
        assert candidates(found, Scope.CLUSTER) == ["10.244.2.2"]
        assert candidates(found, Scope.LOCAL) == ["10.244.1.2"]

    def test_hints_for_nodes(self):
        hinted = [
            endpoint(f"10.244.{n}.2", nodeName=f"n{n}", hints={"forNodes": [{"name": f"n{n}"}]})
            for n in (1, 2)
        ]
        assert candidates(web(service(), part(*hinted), node=N1), Scope.CLUSTER) == ["10.244.1.2"]

    def test_a_slice_port_of_another_name_has_no_say_in_hints(self):
        near = part(
            endpoint("10.244.1.2", hints={"forZones": [{"name": "z1"}]}), name="a", ports=[{"name": "wrong"}]
        )
        far = part(
            endpoint("10.244.2.2", hints={"forZones": [{"name": "z2"}]}),
            name="b",
            ports=[{"name": "http", "port": 8080}],
        )
        found = web(service(ports=[{"name": "http", "port": 80}]), near, far, node=N1)
        assert candidates(found, Scope.CLUSTER) == ["10.244.2.2"]

    def test_the_copy_of_an_endpoint_that_is_here_counts(self):
        one = part(endpoint("10.244.1.2", nodeName="n2"), name="a")
        two = part(endpoint("10.244.1.2", nodeName="n1"), name="b")
        for order in [one, two], [two, one]:
            assert candidates(web(node_port(**self.LOCAL), *order, node=N1), Scope.LOCAL) == ["10.244.1.2"]


class TestAffinity:
    @pytest.mark.parametrize("node", [N1, None], ids=["node", "no-node"])
    @pytest.mark.parametrize(
        ("spec", "seconds"),
        [
            ({}, 0),
            ({"sessionAffinity": "None"}, 0),
            ({"sessionAffinity": "ClientIP"}, 10800),
            (
                {
                    "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
                },
                10,
            ),
            ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}}}, 0),
        ],
    )
    def test_timeout(self, spec: Object, seconds: int, node: NodeView | None):
        assert web(service(**spec), node=node).affinity_timeout == seconds


class TestOwnership:
    """One address, port and protocol has one owner."""

    def two(self, a: Object, b: Object, node: NodeView = N1) -> tuple[dict[str, list[str]], tuple[str, ...]]:
        found = translated(a, b, node=node)
        return {each.name: exposed(each) for each in found.services}, found.notes

    def test_the_first_by_name_has_an_address_that_two_claim(self):
        a = balanced("203.0.113.1", name="a")
        b = balanced("203.0.113.1", name="b", clusterIP="10.96.0.11")
        for order in (a, b), (b, a):
            found, notes = self.two(*order)
            assert found["default/a"] == ["203.0.113.1:80 (LOAD_BALANCER)"]
            assert found["default/b"] == []
            assert notes == (
                "default/b: 203.0.113.1:80/TCP (LOAD_BALANCER) is left out: it belongs to default/a",
            )

    def test_on_different_ports_they_share_it(self):
        a = balanced("203.0.113.1", name="a")
        b = balanced("203.0.113.1", name="b", clusterIP="10.96.0.11", ports=[{"port": 81}])
        assert self.two(a, b) == (
            {
                "default/a": ["203.0.113.1:80 (LOAD_BALANCER)"],
                "default/b": ["203.0.113.1:81 (LOAD_BALANCER)"],
            },
            (),
        )

    def test_a_load_balancer_goes_before_an_external_ip(self):
        a = service("a", externalIPs=["203.0.113.1"])
        b = balanced("203.0.113.1", name="b", clusterIP="10.96.0.11")
        assert self.two(a, b)[0] == {"default/a": [], "default/b": ["203.0.113.1:80 (LOAD_BALANCER)"]}

    def test_node_ports_are_kept_free_at_the_node(self):
        found = translated(balanced("192.0.2.11", ports=[{"port": 30080}]), node=N1)
        assert exposed(found.services[0]) == []
        assert found.notes == (
            "default/web: 192.0.2.11:30080/TCP (LOAD_BALANCER) is left out: "
            "this node keeps it for node ports",
        )

    def test_other_ports_of_the_node_can_be_a_load_balancers(self):
        assert exposed(web(balanced("192.0.2.11"), node=N1)) == ["192.0.2.11:80 (LOAD_BALANCER)"]

    def test_the_range_of_node_ports_can_be_another(self):
        other = NodeView("n1", addresses=["192.0.2.11"], node_port_range=(80, 90))
        assert exposed(web(balanced("192.0.2.11"), node=other)) == []

    def test_an_address_that_moves_has_one_owner_before_and_after(self):
        def owners(a: list[str], b: list[str]) -> list[str]:
            made = balanced(*a, name="a"), balanced(*b, name="b", clusterIP="10.96.0.11")
            return [each.name for each in translated(*made, node=N1).services if each.exposed]

        assert owners(["203.0.113.1"], []) == ["default/a"]
        assert owners([], ["203.0.113.1"]) == ["default/b"]


class TestHealthCheck:
    LOCAL = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}  # noqa: RUF012

    def check(self, *objects: Object) -> HealthCheck:
        [found] = translated(*objects, node=N1).health_checks
        return found

    def test_counts_distinct_ready_addresses_here(self):
        ports = [{"name": "a", "port": 80}, {"name": "b", "port": 443}]
        eps = [endpoint("10.244.1.5", nodeName="n1"), endpoint("10.244.2.5", nodeName="n2")]
        web_service = balanced("203.0.113.1", ports=ports, **self.LOCAL)
        found = self.check(web_service, part(*eps, ports=ports), part(*eps, name="again", ports=ports))
        assert found == HealthCheck("default", "web", 32000, ipv4=1, ipv6=None)

    def test_terminating_ones_do_not_count_though_they_are_used(self):
        objects = balanced("203.0.113.1", **self.LOCAL), at("ST", "-")
        assert self.check(*objects).ipv4 == 0
        assert candidates(web(*objects, node=N1), Scope.LOCAL) == ["10.244.1.2"]

    def test_before_there_is_an_address_it_answers_already(self):
        assert self.check(balanced(**self.LOCAL), at("R", "R")).ipv4 == 1

    def test_each_family_has_its_count(self):
        assert self.check(balanced(**self.LOCAL, **DUAL), at("R", "R")) == HealthCheck(
            "default", "web", 32000, ipv4=1, ipv6=0
        )

    @pytest.mark.parametrize(
        "without",
        [
            balanced(healthCheckNodePort=32000),
            balanced(externalTrafficPolicy="Local"),
            node_port(externalTrafficPolicy="Local", healthCheckNodePort=32000),
        ],
        ids=["policy-cluster", "no-port", "no-load-balancer"],
    )
    def test_only_load_balancers_with_local_traffic_have_one(self, without: Object):
        assert translated(without, node=N1).health_checks == ()


class TestNodeView:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"name": ""},
            {"addresses": "192.0.2.11"},
            {"addresses": ["192.0.2"]},
            {"node_port_networks": "192.0.2.0/24"},
            {"node_port_range": (40000, 30000)},
        ],
        ids=str,
    )
    def test_nonsense_is_refused(self, wrong: dict[str, Any]):
        with pytest.raises(ModelError):
            NodeView(**{"name": "n1"} | wrong)

    def test_nothing_is_ignored_with_a_node(self):
        everything = balanced(
            "203.0.113.1",
            externalIPs=["198.51.100.1"],
            internalTrafficPolicy="Local",
            sessionAffinity="ClientIP",
        )
        assert translated(everything, pod(), node=N1).ignored == Counter()

    def test_sctp_is_left_out_where_its_port_would_change(self):
        sctp = balanced("203.0.113.1", ports=[{"port": 80, "nodePort": 30080, "protocol": "SCTP"}])
        end = part("10.244.1.2", ports=[{"port": 80, "protocol": "SCTP"}])
        told = translated(sctp, end, pod(port={"protocol": "SCTP"}), node=N1)
        assert [list(map(str, each.frontends)) for each in told.services] == [
            ["10.96.0.10:80/SCTP", "203.0.113.1:80/SCTP"]
        ]
        assert told.notes == (
            "default/web: 192.0.2.11:30080/SCTP (NODE_PORT) is left out: "
            "SCTP keeps its port, and cannot go on to 80",
            *(
                f"default/edge: {place}:80/SCTP (HOST_PORT) is left out: "
                "SCTP keeps its port, and cannot go on to 8080"
                for place in ("192.0.2.11", "[2001:db8::11]")
            ),
        )
        kept = pod(port={"protocol": "SCTP", "containerPort": 80})
        assert list(read(kept, node=N1)) == ["192.0.2.11:80/SCTP", "[2001:db8::11]:80/SCTP"]
