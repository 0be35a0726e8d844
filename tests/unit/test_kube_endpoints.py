"""Which endpoints are given new flows: the truth table of ``choose``, and the same against an oracle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.kube import NodeView
from k8sdatapath.kube.endpoints import choose
from k8sdatapath.kube.objects import Endpoint
from k8sdatapath.model import Backend, BackendState, Protocol, Scope, Service, address

NODE = NodeView("n1", "z1")


def endpoint(last: int, conditions: str = "R", node: str = "n2", **hints: set[str]) -> Endpoint:
    """``conditions``: R for ready, S for serving, T for terminating."""
    flags = [letter in conditions for letter in "RST"]
    return Endpoint(
        address(f"10.244.1.{last}"), *flags, node=node, **{what: frozenset(hints[what]) for what in hints}
    )


def sets(*endpoints: Endpoint, node: NodeView | None = NODE, **options: Any) -> tuple[list[int], list[int]]:
    """Who is in the set for all, and who in the local one, by the last number of the address."""
    found = choose(((each, 8080) for each in endpoints), node, **{"local": True} | options)
    service = Service("10.96.0.10", 80, backends=found)
    cluster, local = ([last(backend) for backend in service.candidates_in(scope)] for scope in Scope)
    return cluster, local


def last(backend: Backend) -> int:
    return backend.address.packed[-1]


class TestConditions:
    @pytest.mark.parametrize("conditions", ["R", "RS", "RT", "RST"])
    def test_ready_is_active_whatever_else_it_is(self, conditions: str):
        [found] = choose([(endpoint(1, conditions), 8080)])
        assert found == Backend("10.244.1.1", 8080, state=BackendState.ACTIVE, cluster=True)

    def test_serving_and_terminating_stands_in(self):
        [found] = choose([(endpoint(1, "ST"), 8080)])
        assert found == Backend("10.244.1.1", 8080, state=BackendState.TERMINATING, cluster=True)

    @pytest.mark.parametrize("conditions", ["", "S", "T"])
    def test_the_rest_is_kept_for_the_flows_it_has(self, conditions: str):
        [found] = choose([(endpoint(1, conditions), 8080)])
        assert found == Backend("10.244.1.1", 8080, state=BackendState.TERMINATING, cluster=False)

    @pytest.mark.parametrize(("conditions", "kept"), [("", 0), ("T", 0), ("S", 1), ("ST", 1), ("R", 1)])
    def test_udp_flows_end_with_the_serving(self, conditions: str, kept: int):
        assert len(choose([(endpoint(1, conditions), 53)], protocol=Protocol.UDP)) == kept

    def test_the_order_of_fallback(self):
        serving, dead, ready = endpoint(1, "ST"), endpoint(2, "T"), endpoint(3, "RT")
        assert sets(serving, dead) == ([1], [])
        assert sets(endpoint(1, ""), endpoint(2, "RT")) == ([2], [])
        assert sets(serving, dead, ready) == ([3], [])
        assert sets(dead) == sets() == ([], [])


class TestLocal:
    """Two fallbacks that do not look at each other."""

    @pytest.mark.parametrize(
        ("here", "there", "cluster", "local"),
        [
            ("R", "R", [1, 2], [1]),
            ("R", "ST", [1], [1]),
            ("ST", "R", [2], [1]),
            ("ST", "ST", [1, 2], [1]),
            ("ST", "T", [1], [1]),
            ("T", "R", [2], []),
            ("", "R", [2], []),
            ("T", "ST", [2], []),
            ("", "", [], []),
        ],
    )
    def test_one_here_and_one_there(self, here: str, there: str, cluster: list[int], local: list[int]):
        assert sets(endpoint(1, here, "n1"), endpoint(2, there)) == (cluster, local)

    def test_a_ready_one_here_keeps_the_leaving_one_out(self):
        assert sets(endpoint(1, "R", "n1"), endpoint(2, "ST", "n1")) == ([1], [1])

    def test_nobody_is_local_where_nobody_asks_or_the_node_is_unknown(self):
        assert sets(endpoint(1, "R", "n1"), local=False) == ([1], [])
        assert sets(endpoint(1, "R", "n1"), node=None) == ([1], [])
        assert sets(endpoint(1, "R", ""), node=None) == ([1], [])

    def test_an_endpoint_that_does_not_say_where_it_is_is_elsewhere(self):
        assert sets(endpoint(1, "R", "")) == ([1], [])


def zoned(last: int, zones: str, conditions: str = "R", node: str = "n2") -> Endpoint:
    return endpoint(last, conditions, node, zone_hints=set(zones.split()))


def noded(last: int, nodes: str, zones: str = "", conditions: str = "R", node: str = "n2") -> Endpoint:
    return endpoint(last, conditions, node, node_hints=set(nodes.split()), zone_hints=set(zones.split()))


class TestHints:
    def test_those_of_the_zone(self):
        assert sets(zoned(1, "z1"), zoned(2, "z2"), zoned(3, "z2 z1")) == ([1, 3], [])

    def test_one_ready_endpoint_without_hints_and_none_counts(self):
        assert sets(zoned(1, "z1"), zoned(2, "z2"), zoned(3, "")) == ([1, 2, 3], [])

    @pytest.mark.parametrize("conditions", ["ST", "T", "S", ""])
    def test_only_ready_ones_are_asked_for_hints(self, conditions: str):
        assert sets(zoned(1, "z1"), zoned(2, "", conditions)) == ([1], [])

    def test_nobody_means_this_zone(self):
        assert sets(zoned(1, "z2"), zoned(2, "z3")) == ([1, 2], [])

    def test_a_node_without_zone(self):
        assert sets(zoned(1, "z1"), zoned(2, "z2"), node=NodeView("n1")) == ([1, 2], [])

    def test_an_unknown_node(self):
        assert sets(zoned(1, "z1"), zoned(2, "z2"), node=None) == ([1, 2], [])

    def test_the_terminating_stand_in_wherever_they_are(self):
        assert sets(zoned(1, "z1", "ST"), zoned(2, "z2", "ST")) == ([1, 2], [])
        assert sets(zoned(1, "z1", "ST"), zoned(2, "z2")) == ([2], [])

    def test_the_local_set_knows_no_hints(self):
        assert sets(zoned(1, "z2", "R", "n1"), zoned(2, "z1")) == ([2], [1])

    def test_hints_for_the_node_come_first(self):
        assert sets(noded(1, "n1", "z1"), noded(2, "n2", "z1"), noded(3, "n3", "z2")) == ([1], [])

    def test_if_none_is_for_this_node_those_of_the_zone(self):
        assert sets(noded(1, "n3", "z1"), noded(2, "n2", "z2")) == ([1], [])

    def test_if_one_has_no_node_those_of_the_zone(self):
        assert sets(noded(1, "n1", "z2"), noded(2, "", "z1")) == ([2], [])

    def test_the_story_of_two_endpoints_in_one_zone(self):
        """Both meant for z1; one leaves and loses its hints; then the other."""
        assert sets(zoned(1, "z1"), zoned(2, "z1")) == ([1, 2], [])
        assert sets(zoned(1, "z1"), zoned(2, "", "ST")) == ([1], [])
        assert sets(zoned(1, "", "ST"), zoned(2, "", "ST")) == ([1, 2], [])


class TestCopies:
    """What several slices tell of one endpoint."""

    def chosen(self, *copies: Endpoint) -> Backend:
        found = {choose([(each, 8080) for each in order], NODE, local=True) for order in
                 itertools.permutations(copies)}  # fmt: skip
        [[backend]] = found
        return backend

    def test_the_ready_copy_counts(self):
        assert self.chosen(endpoint(1, "ST"), endpoint(1, "R"), endpoint(1, "")).state is BackendState.ACTIVE

    def test_the_copy_here_counts_more(self):
        here = self.chosen(endpoint(1, "ST", "n1"), endpoint(1, "R", "n2"), endpoint(1, "R", ""))
        assert (here.state, here.local) == (BackendState.TERMINATING, True)

    def test_hints_do_not_hang_on_the_order(self):
        assert self.chosen(zoned(1, "z2"), zoned(1, "z1"), zoned(1, "")).cluster

    def test_another_port_is_another_backend(self):
        found = choose([(endpoint(1), 80), (endpoint(1), 81)])
        assert [str(each) for each in found] == ["10.244.1.1:80", "10.244.1.1:81"]


@st.composite
def endpoints(draw: st.DrawFn) -> list[Endpoint]:
    names, zones = st.sets(st.sampled_from(["n1", "n2"])), st.sets(st.sampled_from(["z1", "z2"]))
    hinted = draw(st.sampled_from(["", "zone", "both"]))
    return [
        endpoint(
            number,
            "".join(draw(st.sets(st.sampled_from("RST")))),
            draw(st.sampled_from(["n1", "n2", ""])),
            zone_hints=draw(zones) if hinted else set(),
            node_hints=draw(names) if hinted == "both" else set(),
        )
        for number in range(1, draw(st.integers(0, 5)) + 1)
    ]


@given(endpoints(), st.sampled_from([NODE, NodeView("n1"), NodeView("n3", "z2")]))
def test_as_kube_proxy_chooses(given: list[Endpoint], node: NodeView):
    """The steps of CategorizeEndpoints, one after the other."""
    mode = ""
    ready = [each for each in given if each.ready]
    by_node, by_zone = [each.node_hints for each in ready], [each.zone_hints for each in ready]
    if all(by_node) and any(node.name in hints for hints in by_node):
        mode = "node"
    elif all(by_zone) and any(node.zone in hints for hints in by_zone):
        mode = "zone"
    fits = {
        "": lambda each: True,
        "node": lambda each: node.name in each.node_hints,
        "zone": lambda each: node.zone in each.zone_hints,
    }[mode]
    cluster = [each for each in ready if fits(each)]
    if not cluster:
        cluster = [each for each in given if each.serving and each.terminating]
    local = [each for each in ready if each.node == node.name]
    if not local:
        local = [each for each in given if each.serving and each.terminating and each.node == node.name]
    assert sets(*given, node=node) == tuple(
        [each.address.packed[-1] for each in chosen] for chosen in (cluster, local)
    )
