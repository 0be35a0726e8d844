"""What leaves an uplink under which address and port, packet by packet, without a service anywhere."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from attrs import evolve

from k8sdatapath import maps
from k8sdatapath.datapath.explainer import Device, Explainer
from k8sdatapath.datapath.explanation import Place
from k8sdatapath.errors import CapacityError
from k8sdatapath.layout import u32
from k8sdatapath.model import Masquerade
from k8sdatapath.net.packet import icmp_echo, parse, tcp, udp
from k8sdatapath.programs.base import device_index
from k8sdatapath.tables.masquerade import MasqKey, MasqRule, MasqSide
from tests.packets.uplink import EXCLUDED, OURS, PODS, PODS6, SOURCES, WORLD, Uplink

DECISIONS = [
    ("10.244.1.2", WORLD, "192.0.2.1"),
    ("10.244.1.2", "8.8.8.8", "192.0.2.1"),
    ("10.244.1.2", "10.244.2.9", None),  # excluded
    ("10.244.1.2", "10.9.9.9", None),
    ("10.244.1.2", "169.254.169.254", None),  # good for one link
    ("10.244.1.2", "224.0.0.251", None),  # a group
    ("10.244.9.9", WORLD, None),  # no pod of this node
    ("192.0.2.1", WORLD, None),  # the node itself
    ("fd00:244:1::2", "2001:db8:9::9", "2001:db8:1::1"),
    ("fd00:244:1::2", "fd00:244:2::9", None),
    ("fd00:244:1::2", "fe80::1", None),
    ("fd00:244:1::2", "ff02::fb", None),
]


@pytest.mark.parametrize(("src", "dst", "leaves_as"), DECISIONS)
def test_who_leaves_as_whom(uplink: Uplink, src: str, dst: str, leaves_as: str | None) -> None:
    for frame in (
        tcp(src, dst, 40000, 80, "S"),
        udp(src, dst, 40000, 53, b"?"),
        icmp_echo(src, dst, 4000, b"?"),
    ):
        sent = uplink.send(frame)
        assert sent is not None
        assert (str(sent.src), str(sent.dst)) == (leaves_as or src, dst)
        assert sent.checksums_ok
        assert sent.sport == (parse(frame).sport)


def test_new_exclusions_are_for_new_flows(uplink: Uplink) -> None:
    frame = tcp("10.244.1.2", "172.16.1.1", 40000, 80, "A")
    assert str(uplink.passed(frame).src) == "192.0.2.1"
    uplink.plan(exclude=[*EXCLUDED, "172.16.0.0/12"])
    assert str(uplink.passed(frame).src) == "192.0.2.1"
    other = uplink.passed(tcp("10.244.1.2", "172.16.1.1", 40001, 80, "S"))
    assert str(other.src) == "10.244.1.2"


@pytest.mark.parametrize(("everything", "kept"), [("::/0", 6), ("0.0.0.0/0", 4)])
@pytest.mark.parametrize("which", ["exclude", "routable"])
def test_all_of_one_family_is_nothing_of_the_other(
    uplink: Uplink, which: str, everything: str, kept: int
) -> None:
    uplink.plan(**{which: [everything]})
    for family, pod, world in ((4, PODS[0], WORLD), (6, PODS6[0], "2001:db8:9::9")):
        sent = uplink.send(tcp(pod, world, 40000, 80, "S"))
        assert sent is not None
        assert str(sent.src) == (pod if family == kept else str(SOURCES[family]))


def test_more_rules_than_there_is_room_for_are_refused(uplink: Uplink) -> None:
    networks = [*ip_network("10.0.0.0/8").subnets(new_prefix=23)]
    with pytest.raises(CapacityError, match=r"kd_masq_rules needed.*fewer, wider networks do"):
        uplink.plan(exclude=networks)
    for first in (0, 200, 16000, 0):  # more than fit beside those before, or beside what was taken back
        uplink.plan(exclude=networks[first : first + 16000])
        assert str(uplink.passed(tcp(PODS[0], str(networks[first][1]), 40000, 80)).src) == PODS[0]


def test_what_is_good_for_one_link_leaves_as_the_node_if_so_wanted(uplink: Uplink) -> None:
    frames = {4: udp(PODS[0], "169.254.1.1", 4000, 53), 6: udp(PODS6[0], "fe80::1", 4000, 53)}
    for families in ([4], [6], [4, 6], []):
        uplink.masquerader.flush()
        uplink.plan(link_local=families)
        for family, frame in frames.items():
            sent = uplink.send(frame)
            assert sent is not None
            assert str(sent.src) == (SOURCES[family] if family in families else str(parse(frame).src))


def test_ports_left_to_netfilter_are_for_new_flows_of_their_protocol(uplink: Uplink) -> None:
    old = tcp(PODS[0], WORLD, 40000, 21, "S")
    assert uplink.send(old) is not None
    wanted = Masquerade(devices="up0", exclude=EXCLUDED, sources={"up0": SOURCES.values()}, netfilter=[21])
    plan = uplink.masquerader.plan(wanted)
    assert str(plan) == "to port 21/TCP: left to netfilter"
    plan.apply()
    assert uplink.masquerader.plan(wanted).empty
    assert str(uplink.passed(old).src) == SOURCES[4]
    assert uplink.send(tcp(PODS[0], WORLD, 40001, 21, "S")) is None
    assert uplink.send(tcp(PODS6[0], "2001:db8:9::9", 40001, 21, "S")) is None
    assert uplink.count("DROP_LEFT_ALONE") == 2
    for frame in (
        udp(PODS[0], WORLD, 40001, 21),
        tcp(PODS[0], WORLD, 40001, 2100, "S"),
        tcp(PODS[0], WORLD, 21, 80, "S"),
        icmp_echo(PODS[0], WORLD, 21),
    ):
        assert str(uplink.passed(frame).src) == SOURCES[4]
    excluded = uplink.passed(tcp(PODS[0], "10.9.9.9", 40001, 21, "S"))
    assert str(excluded.src) == PODS[0]
    translated = uplink.passed(tcp(SOURCES[4], WORLD, 40001, 21, "S"))  # by netfilter
    assert str(translated.src) == SOURCES[4]


def test_devices_are_chosen_one_by_one_each_with_its_addresses(uplink: Uplink) -> None:
    first, second = uplink.index, uplink.netns.call(device_index, "far")
    frames = [tcp(PODS[0], WORLD, port, 80, "S") for port in range(40000, 40003)]

    def leaves(device: int, frame: bytes) -> str:
        uplink.index = device
        return str(uplink.passed(frame).src)

    assert [leaves(first, frames[0]), leaves(second, frames[1])] == [SOURCES[4], PODS[0]]
    both = {"up0": SOURCES.values(), "far": ["203.0.113.1"]}
    uplink.masquerader.plan(Masquerade(devices=["up0", "far"], sources=both, exclude=EXCLUDED)).apply()
    assert [leaves(first, frames[2]), leaves(second, frames[1])] == [SOURCES[4], "203.0.113.1"]


def test_who_dials_a_pod_is_answered_as_the_pod(uplink: Uplink) -> None:
    for build, flags in ((tcp, ("S",)), (udp, ())):
        asked = build(WORLD, "10.244.1.2", 5000, 80, *flags)  # type: ignore[operator]
        assert uplink.answer(asked).dst == IPv4Address("10.244.1.2")
        back = uplink.passed(build("10.244.1.2", WORLD, 80, 5000, *(("SA",) if flags else ())))  # type: ignore[operator]
        assert str(back.src) == "10.244.1.2"


def test_who_has_dialled_a_pod_and_speaks_again_is_answered_as_the_pod(uplink: Uplink) -> None:
    """On a connection that nobody knows any more, or that is older than the node's datapath."""
    asked = tcp(WORLD, PODS[0], 5000, 80, "PA", b"are you there?")
    assert str(uplink.answer(asked).dst) == PODS[0]
    assert str(uplink.passed(tcp(PODS[0], WORLD, 80, 5000, "PA", b"yes")).src) == PODS[0]
    assert not list(uplink.masquerader.mappings())


WORLDS = {
    "IPv4": (PODS[0], WORLD, ["198.51.100.0/24", "198.51.0.0/16"]),
    "IPv6": (PODS6[0], "2001:db8:9::9", ["2001:db8:9::/48", "2001:db8::/32"]),
}


@pytest.mark.parametrize("by", ["destination", "source"])
@pytest.mark.parametrize(("pod", "world", "networks"), WORLDS.values(), ids=WORLDS)
def test_connections_that_a_rule_has_left_as_they_were_go_on_so_without_it(
    uplink: Uplink, pod: str, world: str, networks: list[str], by: str
) -> None:
    def leaves_as(port: int, flags: str) -> str:
        return str(uplink.passed(tcp(pod, world, port, 80, flags)).src)

    narrow, wide = networks
    node = SOURCES[ip_address(pod).version]
    rule = {"exclude": [*EXCLUDED, narrow]} if by == "destination" else {"routable": [pod]}
    uplink.plan(**rule)
    assert [leaves_as(40000, flags) for flags in "SA"] == [pod, pod]
    uplink.plan()
    assert [leaves_as(40001, flags) for flags in "SA"] == [node, node]
    assert leaves_as(40000, "A") == pod
    assert str(uplink.passed(udp(pod, world, 40000, 80)).src) == node
    uplink.plan(exclude=[*EXCLUDED, wide])  # which is not in the shadow of what was
    assert leaves_as(40002, "S") == pod
    uplink.plan(**rule)
    assert leaves_as(40003, "S") == pod
    uplink.plan()
    rules = uplink.loaded.map("kd_masq_rules", maps.LPMTrie[MasqKey, MasqRule])
    rules.update_many({key: evolve(each, until=1) for key, each in rules.items() if each.until})
    assert [leaves_as(port, "A") for port in (40000, 40003)] == [pod, node]  # hours later: one was silent


def test_nobody_looks_for_rules_of_a_kind_that_there_is_none_of(uplink: Uplink) -> None:
    empty = uplink.loaded.map("kd_masq_empty", maps.Array[u32])

    def sides() -> set[MasqSide]:
        return {side for side in MasqSide if empty[0] >> side & 1}

    assert sides() == {MasqSide.SOURCE, MasqSide.PORT}
    uplink.plan(netfilter=["21/TCP"])
    assert sides() == {MasqSide.SOURCE}
    uplink.plan(routable=["10.244.1.3"])
    assert sides() == {MasqSide.PORT}
    uplink.plan()
    assert sides() == {MasqSide.PORT}  # it is taken back, and decides for what began under it


EXPLAINED = {
    ("10.244.1.2", WORLD): (["packet", "name", "new_flow", "rewrite"], "A flow is made of it."),
    ("fd00:244:1::2", "2001:db8:9::9"): (["packet", "name", "new_flow", "rewrite"], "It becomes [2001:db8"),
    ("10.244.1.2", "10.244.2.9"): (["packet", "left"], "Its destination knows pods"),
    ("10.244.1.3", WORLD): (["packet", "left"], "Its source keeps its own address"),
    ("192.0.2.1", WORLD): (["packet", "no_flow"], "from the node itself"),
}


@pytest.mark.parametrize(("src", "dst"), EXPLAINED)
def test_what_is_explained_leaves_so(uplink: Uplink, src: str, dst: str) -> None:
    uplink.plan(routable=["10.244.1.3"])
    device, (steps, words) = Device(uplink.index, OURS), EXPLAINED[src, dst]
    with Explainer.bind(uplink.loaded, netns=uplink.netns, config={"redirect": False}) as explainer:
        for flags in "S", "A":  # the first packet of a flow, and one of the flow that it has made
            frame = tcp(src, dst, 40000, 443, flags)
            said = explainer.explain(frame, Place.TO_UPLINK, device=device)
            came_in = 0 if src == SOURCES[4] else 1
            ((_, out),) = uplink.run("to_uplink", [frame], came_in)
            assert said.answer == parse(out), str(said)
            if flags == "S":
                assert ([step.name for step in said.steps], words in str(said)) == (steps, True), str(said)
        assert ("belongs to a flow that is known" in str(said)) == ("rewrite" in steps)
