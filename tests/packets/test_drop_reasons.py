"""Each reason to drop, provoked by a packet that is dropped for it, and told with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.datapath.dns_rules import NameSets
from k8sdatapath.datapath.identity_policy import IdentityPolicy
from k8sdatapath.layout import addr, u8
from k8sdatapath.model import Backend, Protocol, Service
from k8sdatapath.model.names import NamePattern
from k8sdatapath.model.policy import EVERYBODY, Policy, PortMatch, Rule, Selector, Toward
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import fragment, sctp, tcp, udp
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.tables.backends import BackendRow
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.counters import outcomes
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.events import source_line
from k8sdatapath.tables.sets import SlotsBlock
from tests.packets.rig import HOST_MAC, POD_MAC, one_cpu
from tests.packets.site import DEVICE, POD, Site
from tests.packets.world import TCP, UDP, V4, V6

pytestmark = pytest.mark.packets

OF_SOCKETS = {"DROP_NODE_PORT"}  # no packet's: tests/lab/test_flows.py binds a socket


def malformed(site: Site) -> None:
    site.load("pod")
    site.send("from_pod", V4.frame("client", "service", TCP)[:40])


def later_fragment(site: Site) -> None:
    site.load("pod")
    site.send("from_pod", fragment(V4.frame("client", "service", UDP, payload=bytes(900)), 400)[1])


def nobody_here(site: Site) -> None:
    site.load("pod")
    site.services.upsert(evolve(V4.service("service", TCP, ["two"]), internal_local=True))
    site.send("from_pod", V4.frame("client", "service", TCP))


def reset_of_nothing(site: Site) -> None:
    site.load("pod")
    site.send("from_pod", V4.frame("client", "service", TCP, "R"))


def stale_slot(site: Site) -> None:
    slots = site.load("pod").map("kd_slots", maps.Array[SlotsBlock])
    for number, block in enumerate(slots):
        if any(block.backend):
            slots[number] = SlotsBlock(tuple(id and id + (1 << 22) for id in block.backend))
    site.send("from_pod", V4.frame("client", "service", TCP))


def no_address_to_leave_under(site: Site) -> None:
    site.masquerade(sources={"lo": ["192.0.2.1"]})
    site.send("to_uplink", V6.frame("client", "stranger", TCP))


def left_to_netfilter(site: Site) -> None:
    site.masquerade(sources={"lo": ["192.0.2.1"]}, netfilter=[21])
    site.send("to_uplink", tcp(POD, "198.51.100.7", 40000, 21, "S"))


def same_port_twice(site: Site) -> None:
    site.load("pod")
    one = [Backend(V4.address("one"), 3868)]
    for name in ("service", "other"):
        site.services.upsert(Service(V4.address(name), 3868, "SCTP", backends=one))
        site.send("from_pod", sctp(POD, V4.address(name), 40000, 3868))


def full_table(site: Site) -> None:
    with maps.Hash[Tuple, ConntrackRow].create("narrow", 1) as narrow:
        site.load("pod", {"kd_conntrack": narrow})
        site.send("from_pod", V4.frame("client", "service", TCP))


def fragment_without_checksum(site: Site) -> None:
    site.load("pod")
    first = fragment(V4.frame("client", "service", TCP, "A", bytes(900)), 8)[0]
    site.send("from_pod", V4.frame("client", "service", TCP), first)


def stranger_to_a_balancer(site: Site) -> None:
    site.load("host")
    exposed = V4.service("service", TCP, ["one"])
    site.services.upsert(evolve(exposed, kind="load_balancer", source_ranges=["203.0.113.0/24"]))
    site.send("from_uplink", V4.frame("stranger", "service", TCP))


def another_port_of_a_balancer(site: Site) -> None:
    site.load("host")
    site.services.upsert(evolve(V4.service("balancer", TCP, ["one"]), kind="load_balancer"))
    site.send("from_uplink", tcp(V4.address("stranger"), V4.address("balancer"), 1, 81))


def one_answer_too_many(site: Site) -> None:
    site.load("pod", reject_rate=1)
    site.services.upsert(V4.service("service", TCP, []))
    with one_cpu():
        site.send("from_pod", *[V4.frame("client", "service", TCP)] * 150)


def other_port_of_sctp(site: Site) -> None:
    site.load("pod")
    one = [Backend(V4.address("one"), 3868)]
    site.services.upsert(Service(V4.address("other"), 3868, "SCTP", backends=one))
    rows = site.loaded.map("kd_backends", maps.Array[BackendRow])
    for index, row in enumerate(rows):
        if row.state and row.port == 3868:
            rows[index] = BackendRow(row.addr, 0, row.id, 3869, Protocol.SCTP, row.status)
    site.send("from_pod", sctp(POD, V4.address("other"), 40000, 3868))


def to_no_node(site: Site) -> None:
    site.load("overlay")
    site.send("to_overlay", tcp(POD, "10.250.1.1", 1, 80, "S"))


def from_no_node(site: Site) -> None:
    site.load("overlay")
    site.send("from_overlay", tcp("10.250.1.1", POD, 1, 80, "S"))


def to_the_end_of_a_tunnel(site: Site) -> None:
    site.load("pod", tunnel_port=8472)
    site.loaded.map("kd_peer_nodes", maps.Hash[addr, u8])[ip_address("192.0.2.12")] = 1
    site.send("from_pod", udp(POD, "192.0.2.12", 1, 8472))


def denied(site: Site) -> None:
    site.load("pod", enforce=True)
    site.send("to_pod", tcp("198.51.100.7", POD, 1, 80, "S"), came_through=2)


def under_another_address(site: Site) -> None:
    site.load("pod", enforce=True)
    site.send("from_pod", tcp("198.51.100.7", "198.51.100.8", 1, 80, "S"))


def no_question_for_a_name(site: Site) -> None:
    pod = Workload.pod("shop/web", {"app": "web"}, addresses=[POD])
    loaded = site.load("pod", enforce=True, dns=True)
    rule = Rule(
        "names", Toward.EGRESS, [EVERYBODY], [PortMatch(17, 53, 53)], l7=[NamePattern("bank.example")]
    )
    with NameSets(loaded) as names, IdentityPolicy.bind(loaded, names=names) as policy:
        policy.upsert(Policy("names", Selector(), [rule], [Toward.EGRESS]))
        number = policy.attach(pod, 300)
        pods = loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        pods[ip_address(POD)] = EndpointRow(DEVICE, 300, POD_MAC, HOST_MAC, number)
        site.send("from_pod", udp(POD, "198.51.100.7", 40000, 53, b"anything"))


PROVOKED: dict[str, Callable[[Site], None]] = {
    "DROP_MALFORMED": malformed,
    "DROP_FRAGMENT": later_fragment,
    "DROP_NOT_LOCAL": nobody_here,
    "DROP_NO_FLOW": reset_of_nothing,
    "DROP_STALE_SLOT": stale_slot,
    "DROP_NO_SOURCE": no_address_to_leave_under,
    "DROP_NO_PORT": same_port_twice,
    "DROP_NO_MEMORY": full_table,
    "DROP_REWRITE": fragment_without_checksum,
    "DROP_SOURCE": stranger_to_a_balancer,
    "DROP_NO_SERVICE": another_port_of_a_balancer,
    "DROP_REJECT": one_answer_too_many,
    "DROP_SCTP_PORT": other_port_of_sctp,
    "DROP_LEFT_ALONE": left_to_netfilter,
    "DROP_NO_PEER": to_no_node,
    "DROP_UNKNOWN_PEER": from_no_node,
    "DROP_MEDDLING": to_the_end_of_a_tunnel,
    "DROP_POLICY_DENIED": denied,
    "DROP_INVALID_SOURCE_IP": under_another_address,
    "DROP_NAME": no_question_for_a_name,
}


@pytest.mark.parametrize("reason", PROVOKED)
def test_a_reason_is_told(empty_netns: NetNs, reason: str) -> None:
    with ExitStack() as own:
        site = Site(own, empty_netns)
        PROVOKED[reason](site)
        told = {site.listener.outcome(event): event for event in site.listener.heard()}
        assert reason in told
        event = told[reason]
        where = source_line(event.result)
    assert where is not None
    assert where.line > 20


def test_every_reason_is_provoked() -> None:
    known = {each.name for each in outcomes(ObjectSpec.from_file("pod").btf) if each.drop}
    assert known - set(PROVOKED) - OF_SOCKETS == set()
