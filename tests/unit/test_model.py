"""The values: what they accept, what they refuse, how they compare and print."""

from __future__ import annotations

import pickle
import subprocess
import sys
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import attrs
import netaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import DatapathError, ModelError
from k8sdatapath.model import (
    Backend,
    BackendState,
    Exposure,
    Frontend,
    FrontendKind,
    Protocol,
    Scope,
    Selection,
    Service,
    address,
    network,
    port,
)
from k8sdatapath.model.workload import Workload
from k8sdatapath.node import Node, NodeConfig, Tunnel

V4 = IPv4Address("10.96.0.10")
V6 = IPv6Address("fd00:10:96::a")


def refused(nonsense: object) -> None:
    with pytest.raises(ModelError, match="is not an IP address") as caught:
        address(nonsense)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


class TestAddress:
    @pytest.mark.parametrize(
        "given",
        ["10.96.0.10", "  10.96.0.10\n", V4, 0x0A60000A, V4.packed, netaddr.IPAddress("10.96.0.10")],
        ids=repr,
    )
    def test_every_form_of_ipv4_is_the_same_address(self, given):
        assert address(given) == V4
        assert type(address(given)) is IPv4Address

    @pytest.mark.parametrize(
        "given",
        ["fd00:10:96::a", "FD00:10:96:0::A", V6, int(V6), V6.packed, netaddr.IPAddress("fd00:10:96::a")],
        ids=repr,
    )
    def test_every_form_of_ipv6_is_the_same_address(self, given):
        assert address(given) == V6

    def test_an_interface_gives_its_address(self):
        assert address(IPv4Interface("10.96.0.10/16")) == V4

    @pytest.mark.parametrize(
        "nonsense",
        [
            "",
            "10.1",
            "010.96.0.10",
            "10.96.0.256",
            "10.96.0.10/32",
            "1.2.3.4.5",
            "[fd00::1]",
            "fd00::1::2",
            "x" * 10**6,
        ],
    )
    def test_text_that_is_no_address_is_refused_in_one_short_line(self, nonsense):
        refused(nonsense)

    @pytest.mark.parametrize(
        "nonsense",
        [None, True, 1.5, -1, 1 << 128, 10**6000, b"abc", [], {}, object()],
        ids=lambda value: str(type(value)),
    )
    def test_nonsense_is_refused_in_one_short_line(self, nonsense):
        refused(nonsense)

    @pytest.mark.parametrize("given", ["::ffff:10.0.0.1", IPv6Address("::ffff:10.0.0.1")], ids=repr)
    def test_mapped_ipv4_is_refused_and_the_message_says_what_to_write(self, given):
        with pytest.raises(ModelError, match=r"write 10\.0\.0\.1$"):
            address(given)

    @pytest.mark.parametrize("given", ["fe80::1%eth0", IPv6Address("fe80::1%eth0")], ids=repr)
    def test_zones_are_refused(self, given):
        with pytest.raises(ModelError, match="has a zone"):
            address(given)

    @given(st.ip_addresses())
    def test_text_and_bytes_lead_back_to_the_address(self, found):
        if found.version == 6 and found.ipv4_mapped:
            return
        assert address(str(found)) == address(found.packed) == address(found) == found


class TestPort:
    @given(st.integers(1, 65535))
    def test_ports_are_themselves(self, number):
        assert port(number) == number

    def test_an_enum_of_ports_gives_plain_ints(self):
        assert type(port(IntEnum("Ports", {"HTTP": 80}).HTTP)) is int

    @pytest.mark.parametrize(
        "nonsense", [0, -1, 65536, 70000, 10**6000, "80", 80.0, None, True], ids=lambda v: str(type(v))
    )
    def test_everything_else_is_refused(self, nonsense):
        with pytest.raises(ModelError, match=r"is not a port \(1 to 65535\)"):
            port(nonsense)


class TestFrontend:
    @pytest.mark.parametrize(
        ("frontend", "text"),
        [
            (Frontend("10.96.0.10", 80), "10.96.0.10:80/TCP"),
            (Frontend("fd00::1", 53, "UDP"), "[fd00::1]:53/UDP"),
            (Frontend("10.96.0.10", 9, Protocol.SCTP), "10.96.0.10:9/SCTP"),
        ],
    )
    def test_prints_and_reads_back(self, frontend, text):
        assert str(frontend) == text
        assert Frontend.parse(text) == frontend

    def test_protocol_may_be_left_out_when_reading(self):
        assert Frontend.parse("10.96.0.10:80") == Frontend("10.96.0.10", 80)

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "10.96.0.10",
                "10.96.0.10:",
                ":80",
                "fd00::1:80",
                "[10.0.0.1]:80",
                "[fd00::1]",
                "1.2.3.4:80/tls",
            ),
            *("10.96.0.10:0", "10.96.0.10:99999", "10.96.0.10:-1", "10.96.0.10:80/", "10.96.0.10:8O"),
        ],
    )
    def test_other_text_is_refused(self, text):
        with pytest.raises(ModelError):
            Frontend.parse(text)

    def test_protocol_by_name_or_number(self):
        assert Frontend(V4, 53, "udp") == Frontend(V4, 53, 17) == Frontend(V4, 53, Protocol.UDP)

    def test_is_a_key(self):
        assert {Frontend("10.96.0.10", 80): 1}[Frontend(V4, 80, "tcp")] == 1


class TestNetwork:
    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            (" 10.0.0.0/8 ", IPv4Network("10.0.0.0/8")),
            ("10.1.2.3/8", IPv4Network("10.0.0.0/8")),
            ("10.1.2.3", IPv4Network("10.1.2.3/32")),
            (IPv4Address("10.1.2.3"), IPv4Network("10.1.2.3/32")),
            ("0.0.0.0/0", IPv4Network("0.0.0.0/0")),
            ("FD00::1/8", IPv6Network("fd00::/8")),
            (IPv6Network("fd00::/8"), IPv6Network("fd00::/8")),
            ("fd00::1", IPv6Network("fd00::1/128")),
        ],
    )
    def test_every_form_of_it(self, given, meant):
        assert network(given) == meant
        assert type(network(given)) is type(meant)

    @pytest.mark.parametrize(
        "given",
        ["", "/", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10/8", "10.0.0.0/8/8", "10.0.0.0/٨"],
        ids=repr,
    )
    def test_other_text_is_refused(self, given):
        self.refused(given)

    @pytest.mark.parametrize("given", ["fd00::/129", "::ffff:1.2.3.4/120", "fe80::1%eth0/64"])
    def test_other_ipv6_text_is_refused(self, given):
        self.refused(given)

    @pytest.mark.parametrize("given", [8, None, b"10.0.0.0/8", ["10.0.0.0/8"]], ids=repr)
    def test_what_is_not_text_is_refused(self, given):
        self.refused(given)

    def refused(self, given):
        with pytest.raises(ModelError, match=r"is not a network: write 10\.0\.0\.0/8"):
            network(given)


class TestBackend:
    def test_is_in_the_set_for_all_unless_it_is_said_otherwise(self):
        backend = Backend("10.244.1.2", 8080)
        assert (backend.cluster, backend.local) == (True, False)
        with pytest.raises(ModelError, match="'no' is neither True nor False"):
            Backend("10.244.1.2", 8080, local="no")

    def test_state_and_weight_have_names_and_bounds(self):
        backend = Backend("10.244.1.2", 8080, state="terminating", weight=3)
        assert (backend.state, backend.weight) == (BackendState.TERMINATING, 3)
        for wrong in ({"state": "gone"}, {"state": 0}, {"weight": -1}, {"weight": 65536}, {"weight": 1.5}):
            with pytest.raises(ModelError):
                Backend("10.244.1.2", 8080, **wrong)

    def test_prints_its_place(self):
        assert str(Backend("10.244.1.2", 8080)) == "10.244.1.2:8080"
        assert str(Backend("fd00::2", 8080)) == "[fd00::2]:8080"


class TestService:
    def test_reads_as_the_manual_writes_it(self):
        service = Service("10.96.0.10", 80, backends=[Backend("10.244.1.2", 8080)])
        assert service.frontend == Frontend("10.96.0.10", 80, Protocol.TCP)
        assert service.backends == (Backend("10.244.1.2", 8080),)
        assert str(service) == "10.96.0.10:80/TCP"
        assert str(Service(V6, 53, "UDP", name="dns/dns")) == "dns/dns ([fd00:10:96::a]:53/UDP)"

    def test_order_of_backends_makes_no_difference(self):
        one, two = Backend("10.244.1.2", 8080), Backend("10.244.1.10", 8080)
        assert Service(V4, 80, backends=[two, one]) == Service(V4, 80, backends=(b for b in (one, two)))

    @pytest.mark.parametrize(
        ("wrong", "because"),
        [
            ({"backends": [Backend("10.244.1.2", 80)] * 2}, "10.244.1.2:80 is given twice"),
            (
                {"backends": [Backend("10.244.1.2", 80), Backend("10.244.1.2", 80, weight=2)]},
                "10.244.1.2:80 is given twice",
            ),
            ({"backends": [Backend("fd00::2", 80)]}, r"\[fd00::2\]:80 is IPv6, its service .* IPv4"),
            ({"backends": Backend("10.244.1.2", 80)}, "single one"),
            ({"backends": ["10.244.1.2:80"]}, "not a Backend"),
            ({"protocol": "ICMP"}, r"'ICMP' is not a protocol \(TCP, UDP, SCTP\)"),
            ({"protocol": 1}, "1 is not a protocol"),
            ({"selection": "leastconn"}, "not a selection"),
            ({"name": 3}, "not a name"),
            ({"kind": "ingress"}, "not a kind of frontend"),
            ({"exposed": Exposure("node_port", "192.0.2.1", 1)}, "single one"),
            ({"exposed": [Frontend("192.0.2.1", 1)]}, "not an Exposure"),
            (
                {"exposed": [Exposure("node_port", "fd00::1", 1)]},
                r"\[fd00::1\]:1 \(NODE_PORT\) is IPv6, its service",
            ),
            (
                {"exposed": [Exposure("node_port", "192.0.2.1", 1), Exposure("host_port", "192.0.2.1", 1)]},
                "given twice",
            ),
            ({"exposed": [Exposure("external_ip", V4, 80)]}, "is the frontend of the service"),
            ({"internal_local": 1}, "neither True nor False"),
            ({"external_local": None}, "neither True nor False"),
            ({"affinity_timeout": -1}, "-1 is not a timeout of affinity"),
            ({"affinity_timeout": 86401}, "86401 is not a timeout"),
            ({"affinity_timeout": True}, "True is not a timeout"),
            ({"source_ranges": ["10.0.0.0/8", "fd00::/8"]}, "source range fd00::/8 is IPv6, its service"),
            ({"source_ranges": "10.0.0.0/8"}, "single one"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, because):
        with pytest.raises(ModelError, match=because) as caught:
            Service(V4, 80, **wrong)
        assert isinstance(caught.value, DatapathError)
        assert isinstance(caught.value, ValueError)

    @pytest.mark.parametrize("kind", FrontendKind)
    @pytest.mark.parametrize(
        ("at", "of_the_node"),
        [
            ("0.0.0.0", False),
            ("224.0.0.1", False),
            ("127.0.0.1", True),
            ("169.254.1.1", True),
            ("::", False),
            ("ff02::1", False),
            ("::1", True),
            ("fe80::1", True),
        ],
    )
    def test_an_address_that_no_service_can_have_is_refused(self, kind, at, of_the_node):
        other = "fd00::1" if ":" in at else "10.96.0.10"
        ports_of_the_node = FrontendKind.NODE_PORT, FrontendKind.HOST_PORT
        for made in (
            lambda: Service(at, 80, kind=kind),
            lambda: Service(other, 80, exposed=[Exposure(kind, at, 81)]),
        ):
            if of_the_node and kind in ports_of_the_node:
                made()
                continue
            with pytest.raises(ModelError, match="which no service can have") as error:
                made()
            assert at in str(error.value)

    @pytest.mark.parametrize(
        "at", ["1.0.0.0", "126.9.9.9", "128.0.0.1", "169.253.0.1", "223.0.0.1", "::2", "fe00::1", "fec0::1"]
    )
    def test_its_neighbours_are_not(self, at):
        assert Service(at, 80).port == 80

    def test_candidates_are_the_active_else_the_terminating_never_weight_0(self):
        active, leaving = Backend("10.0.0.1", 1), Backend("10.0.0.2", 1, state="terminating")
        resting = Backend("10.0.0.3", 1, weight=0)

        def candidates(*backends):
            return Service(V4, 80, backends=backends).candidates

        assert candidates(active, leaving, resting) == (active,)
        assert candidates(leaving, resting) == (leaving,)
        assert candidates(resting) == candidates() == ()

    def test_each_scope_has_its_own_candidates(self):
        here, there = Backend("10.0.0.1", 1, local=True), Backend("10.0.0.2", 1)
        leaving = Backend("10.0.0.3", 1, state="terminating", cluster=False, local=True)
        kept = Backend("10.0.0.4", 1, cluster=False)
        service = Service(V4, 80, backends=[here, there, leaving, kept])
        assert service.candidates_in(Scope.CLUSTER) == service.candidates == (here, there)
        assert service.candidates_in(Scope.LOCAL) == (here,)
        assert Service(V4, 80, backends=[there, leaving]).candidates_in(Scope.LOCAL) == (leaving,)
        assert Service(V4, 80, backends=[there, kept]).candidates_in(Scope.LOCAL) == ()
        assert Service(V4, 80, backends=[kept]).candidates == ()

    def test_all_its_frontends_the_main_one_first(self):
        ports = [Exposure("external_ip", "192.0.2.80", 80), Exposure("node_port", "10.0.0.1", 30080)]
        service = Service(V4, 80, "UDP", exposed=ports)
        assert service == Service(V4, 80, "UDP", exposed=reversed(ports))
        assert list(map(str, service.frontends)) == [
            "10.96.0.10:80/UDP",
            "10.0.0.1:30080/UDP",
            "192.0.2.80:80/UDP",
        ]
        assert list(map(str, service.exposed)) == [
            "10.0.0.1:30080 (NODE_PORT)",
            "192.0.2.80:80 (EXTERNAL_IP)",
        ]
        assert service.kind is FrontendKind.CLUSTER_IP

    def test_source_ranges_are_a_set_of_networks(self):
        service = Service(V4, 80, source_ranges=[" 10.1.0.0/8", "10.0.0.0/8", IPv4Address("192.0.2.1")])
        assert service.source_ranges == (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.1/32"))

    def test_is_a_frozen_value(self):
        service = Service(V4, 80, backends=[Backend("10.244.1.2", 80)], selection="maglev")
        assert service.selection is Selection.MAGLEV
        assert pickle.loads(pickle.dumps(service)) == service
        assert hash(attrs.evolve(service)) == hash(service)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            service.port = 81  # type: ignore[misc]

    @given(st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)), st.booleans())
    def test_an_exchange_comes_to_what_all_backends_would(
        self, there: set[int], gone: set[int], come: set[int], odd: bool
    ) -> None:
        def backend(host: int) -> Backend:
            return Backend(f"10.244.1.{host}", 8080, weight=2 if odd and host > 6 else 1)

        before = Service(V4, 80, backends=map(backend, there), name="web", affinity_timeout=9)
        _ = before.alike
        gone, come = gone & there, come - (there - gone)
        after = before.exchange([backend(host).key for host in gone], map(backend, come))
        whole = Service(V4, 80, backends=map(backend, there - gone | come), name="web", affinity_timeout=9)
        assert (after, after.name, after.alike) == (whole, "web", whole.alike)
        assert after == before.with_backends(whole.backends)
        assert before.backends == tuple(map(backend, sorted(there)))

    def test_an_exchange_of_what_is_not_there_or_is_already_is_refused(self) -> None:
        service = Service(V4, 80, backends=[Backend("10.244.1.1", 8080)])
        with pytest.raises(ModelError, match="has no backend"):
            service.exchange([Backend("10.244.1.1", 80).key], [])
        with pytest.raises(ModelError, match="twice"):
            service.exchange([], [Backend("10.244.1.1", 8080)])
        with pytest.raises(ModelError, match="is IPv6"):
            service.exchange([], [Backend(V6, 8080)])
        with pytest.raises(ModelError, match="not a Backend"):
            service.exchange([], ["10.244.1.2:8080"])  # type: ignore[list-item]


def test_importing_the_model_imports_nothing_heavy():
    code = "import k8sdatapath.model, sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"netaddr", "kubernetes", "yaml", "cffi", "_cffi_backend", "numpy", "pyroute2"} & set(
        eval(loaded)
    )


def test_a_node_says_what_its_configuration_cannot_be() -> None:
    assert NodeConfig(pins="/sys/fs/bpf/blue").pins == NodeConfig(pins=Path("/sys/fs/bpf/blue")).pins
    for wrong, said in (
        ({"netns": "blue"}, r"netns is a NetNs, not 'blue': open it with NetNs\.open"),
        ({"capacity": 5}, "capacity is a Capacity, not 5"),
        ({"timeouts": None}, "timeouts is a Timeouts, not None"),
        ({"masquerade": True}, r"masquerade is a Masquerade, not True: Masquerade\(exclude="),
        ({"tunnel": True}, "True is no kind of tunnel: there are vxlan and geneve"),
    ):
        with pytest.raises(ModelError, match=said):
            NodeConfig(**wrong)


def test_what_a_tunnel_cannot_be() -> None:
    wanted: tuple[tuple[dict[str, Any], str], ...] = (
        ({"kind": "gre"}, "'gre' is no kind of tunnel"),
        ({"port": 65536}, r"65536 is no port of a tunnel \(0 to 65535\)"),
        ({"mtu": "1450"}, "'1450' is no mtu of a tunnel"),
        ({"addresses": "10.244.1.1"}, "'10.244.1.1' is a single one"),
    )
    for wrong, said in wanted:
        with pytest.raises(ModelError, match=said):
            Tunnel(**wrong)


def test_a_node_is_opened_with_a_configuration() -> None:
    with pytest.raises(ModelError, match="a node is opened with a NodeConfig, not with 5"):
        Node.open(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Ingress/80/TCP", "is no visibility"),
        ("<Both/80/TCP/HTTP>", "is no visibility"),
        ("<Ingress/http/TCP/HTTP>", "is no visibility"),
        ("<Ingress/" + "8" * 5000 + "/TCP/HTTP>", "is no visibility"),
        ("<Ingress/65536/TCP/HTTP>", "65536"),
        ("<Ingress/0/TCP/HTTP>", "0"),
        ("<Ingress/80/UDP/HTTP>", "over TCP only"),
        ("<Ingress/80/ANY/HTTP>", "ANY"),
        ("<Ingress/80/TCP/Kafka>", "'KAFKA' is not read"),
        ("<Ingress/53/UDP/DNS>", "write Egress/53"),
        ("<Egress/5353/UDP/DNS>", "write Egress/53"),
        ("<Egress/53/SCTP/DNS>", "TCP or UDP"),
        ("<Ingress/80/TCP/HTTP>,", "is no visibility"),
        (",".join(f"<Ingress/{port}/TCP/HTTP>" for port in range(1, 66)), "at most 64"),
    ],
)
def test_what_cannot_be_seen_is_refused(text, why):
    with pytest.raises(ModelError, match=why):
        Workload.pod("shop/web", visible=text)
