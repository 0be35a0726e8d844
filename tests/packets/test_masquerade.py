"""What leaves an uplink under which address and port, packet by packet, without a service anywhere."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k8sdatapath import maps
from k8sdatapath.datapath.explainer import Device, Explainer
from k8sdatapath.datapath.explanation import Place
from k8sdatapath.datapath.flow_reaper import FlowReaper
from k8sdatapath.datapath.masquerader import Masquerader
from k8sdatapath.layout import addr
from k8sdatapath.model import Masquerade
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import Packet, icmp_echo, parse, tcp, udp
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import TC
from k8sdatapath.programs.base import device_index
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.counters import CounterRow, outcomes, read_counters
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.masquerade import ExhaustedRow
from tests.packets.rig import HOST_MAC, POD_MAC

PODS = [f"10.244.1.{number}" for number in range(2, 6)]
PODS6 = ["fd00:244:1::2"]
SOURCES = {4: "192.0.2.1", 6: "2001:db8:1::1"}
WORLD = "198.51.100.7"
OURS = "02:00:00:00:02:01"
EXCLUDED = ["10.0.0.0/8", "fd00::/8"]


class Uplink:
    """Programs of an uplink by themselves; what pods send has come in through another device."""

    def __init__(self, netns: NetNs, own: ExitStack, **config: int) -> None:
        self.netns = netns
        self.index = netns.call(device_index, "up0")
        spec = ObjectSpec.from_file("host").with_maps(kd_conntrack=1 << 18)
        self.loaded = own.enter_context(spec.with_config(masquerade=True, redirect=False, **config).load())
        self.masquerader = own.enter_context(Masquerader.bind(self.loaded, netns=netns))
        pods = self.loaded.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        pods.update_many({ip_address(pod): EndpointRow(1, 0, POD_MAC, HOST_MAC) for pod in (*PODS, *PODS6)})
        self.flows = self.loaded.map("kd_conntrack", maps.LRUHash[Tuple, ConntrackRow])
        self.plan()

    def plan(self, **options: object) -> None:
        wanted = {"exclude": EXCLUDED, "sources": {"up0": SOURCES.values()}} | options
        self.masquerader.plan(Masquerade(devices="up0", **wanted)).apply()  # type: ignore[arg-type]

    def run(self, entry: str, frames: Sequence[bytes], came_in: int = 1) -> list[tuple[int, bytes]]:
        context = bytearray(192)
        struct.pack_into("=2I", context, 36, came_in, self.index)
        program = self.loaded.program(entry, TC)
        return self.netns.call(program.run_many, frames, ctxs=[bytes(context)] * len(frames))

    def send(self, frame: bytes) -> Packet | None:
        """What becomes of a packet on its way out; None if it is dropped."""
        ((answer, out),) = self.run("to_uplink", [frame])
        assert answer in (2, 0xFFFFFFFF)
        return None if answer == 2 else parse(out)

    def passed(self, frame: bytes) -> Packet:
        """A packet on its way out that is not dropped."""
        sent = self.send(frame)
        assert sent is not None
        return sent

    def answer(self, frame: bytes) -> Packet:
        ((answer, out),) = self.run("from_uplink", [bytes.fromhex(OURS.replace(":", "")) + frame[6:]])
        assert answer == 0xFFFFFFFF
        return parse(out)

    def count(self, outcome: str) -> int:
        table = self.loaded.map("kd_counters", maps.PerCpuArray[CounterRow])
        found = read_counters(table, outcomes(self.loaded.spec.btf)).get(outcome)
        return found.packets if found else 0


@pytest.fixture(scope="module")
def netns() -> Iterator[NetNs]:
    def wire() -> None:
        with Netlink() as net:
            net.set_up("lo")
            net.create_veth("up0", "far", mac=OURS)
            net.set_up("far")
            net.set_up("up0")

    with NetNs.create(f"kddp-masq-{os.getpid()}") as made:
        made.call(wire)
        yield made


@contextmanager
def opened(netns: NetNs, **config: int) -> Iterator[Uplink]:
    with ExitStack() as own:
        yield Uplink(netns, own, **config)


@pytest.fixture
def uplink(netns: NetNs) -> Iterator[Uplink]:
    with opened(netns) as made:
        yield made


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


def test_answers_come_back_also_when_half_of_the_flow_was_lost(uplink: Uplink) -> None:
    for frame, back in (
        (tcp("10.244.1.2", WORLD, 40000, 80, "S"), tcp(WORLD, "192.0.2.1", 80, 40000, "SA")),
        (udp("10.244.1.3", WORLD, 40000, 53), udp(WORLD, "192.0.2.1", 53, 40000)),
    ):
        uplink.send(frame)
        answered = uplink.answer(back)
        assert (answered.dst, answered.dport) == (parse(frame).src, 40000)
        assert answered.checksums_ok
        (original,) = [key for key in uplink.flows if key.src == parse(frame).src]
        del uplink.flows[original]
        again = uplink.send(frame)
        assert again is not None
        assert (str(again.src), again.sport) == ("192.0.2.1", 40000)
        assert uplink.answer(back).dst == parse(frame).src


def test_the_half_of_the_answers_comes_back_within_a_second_when_it_was_lost(uplink: Uplink) -> None:
    """Both are as young as each other to the kernel, so to lose one alone is rare; and it does not last."""
    frame, back = udp(PODS[0], WORLD, 40000, 53), udp(WORLD, SOURCES[4], 53, 40000)
    uplink.send(frame)
    (reply,) = [key for key in uplink.flows if str(key.src) == WORLD]
    del uplink.flows[reply]
    deadline = time.monotonic() + 10
    while str(uplink.answer(back).dst) != PODS[0]:
        assert time.monotonic() < deadline
        again = uplink.send(frame)
        assert again is not None
        assert (str(again.src), again.sport) == (SOURCES[4], 40000)
        time.sleep(0.05)


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


def test_sixty_thousand_flows_to_one_end_and_one_more(netns: NetNs) -> None:
    with opened(netns, port_min=5000, port_max=64999) as uplink:

        def frames(pod: str, first: int, count: int) -> list[bytes]:
            return [tcp(pod, WORLD, port, 80, "S") for port in range(first, first + count)]

        halves = [frames(PODS[0], 5000, 30000), frames(PODS[1], 10000, 30000)]
        seen = {out[26:30] + out[34:36] for half in halves for _, out in uplink.run("to_uplink", half)}
        assert len(seen) == 60000  # all different
        assert {each[:4] for each in seen} == {IPv4Address("192.0.2.1").packed}
        assert uplink.masquerader.exhausted() == ()

        more = tcp(PODS[2], WORLD, 6000, 80, "S")
        assert [uplink.send(more) for _ in range(3)] == [None] * 3
        (gone,) = uplink.masquerader.exhausted()
        assert (gone.packets, str(gone.remote), gone.protocol) == (3, f"{WORLD}:80", 6)
        assert uplink.count("DROP_NO_PORT") == 3
        assert uplink.send(tcp(PODS[2], WORLD, 6000, 81, "S")) is not None
        first = uplink.passed(tcp(PODS[0], WORLD, 5000, 80, "A"))
        assert (str(first.src), first.sport) == ("192.0.2.1", 5000)


def test_no_packet_looks_at_more_than_a_part_of_the_ports_and_the_next_goes_on(netns: NetNs) -> None:
    count = 10_000
    with opened(netns, port_min=5000, port_max=5000 + count - 1) as uplink:
        searches = uplink.loaded.map("kd_exhausted", maps.LRUHash[Tuple, ExhaustedRow])
        taken = [tcp(PODS[0], WORLD, 5000 + number, 80, "S") for number in range(count)]
        assert {answer for answer, _ in uplink.run("to_uplink", taken)} == {0xFFFFFFFF}
        others = iter([tcp(PODS[1], WORLD, 20000 + number, 80, "S") for number in range(20000)])
        looked_at = []
        while not any(row.until for row in searches.values()):
            assert uplink.send(next(others)) is None
            looked_at += [row.in_vain for row in searches.values()]
        assert looked_at == [4096, 8192, 12288, 0]  # of 16384 numbers, some more than there are ports

        uplink.send(tcp(PODS[0], WORLD, 9000, 80, "R"))
        deadline = time.monotonic() + 10
        while (sent := uplink.send(next(others))) is None:
            assert time.monotonic() < deadline
        assert sent.sport == 9000
        assert [row.in_vain for row in searches.values()] == [0]
        (gone,) = uplink.masquerader.exhausted()
        assert gone.packets == uplink.count("DROP_NO_PORT")


def test_mappings_stay_when_services_have_changed(uplink: Uplink) -> None:
    """They are flows of no service, so no change of services ends them."""
    uplink.send(udp(PODS[0], WORLD, 40000, 53))
    with FlowReaper.bind(uplink.loaded) as reaper:
        assert reaper.reap() == 0
    assert len(list(uplink.masquerader.mappings())) == 1


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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["open", "open", "open", "go on", "close"]),
            st.sampled_from(PODS),
            st.integers(998, 1007),
            st.sampled_from([80, 81]),
        ),
        max_size=60,
    )
)
def test_ports_are_given_as_the_model_says(netns: NetNs, steps: list[tuple[str, str, int, int]]) -> None:
    """Six ports: the flow's own if it is one and free, else any that is, and none only if there is none."""
    ports = range(1000, 1006)
    with opened(netns, port_min=ports[0], port_max=ports[-1]) as uplink:
        held: dict[tuple[str, int, int], int] = {}  # flow -> port on the wire
        closed: set[tuple[str, int, int]] = set()
        for what, pod, port, remote in steps:
            flow = (pod, port, remote)
            if what != "open" and flow not in held:
                continue
            flags = {"open": "S", "go on": "A", "close": "R"}[what]
            sent = uplink.send(tcp(pod, WORLD, port, remote, flags))
            if what != "open" or (flow in held and flow not in closed):
                assert sent is not None
                assert sent.sport == held[flow]
                closed |= {flow} if what == "close" else set()
                continue
            held.pop(flow, None)
            closed.discard(flow)
            taken = {at: who for who, at in held.items() if who[2] == remote}
            free = {at for at in ports if at not in taken or taken[at] in closed}
            if not free:
                assert sent is None
                uplink.masquerader.forget_exhausted()  # and with it when the next search is due
                continue
            assert sent is not None
            assert sent.sport in free
            assert port not in free or sent.sport == port
            held = {who: at for who, at in held.items() if (who[2], at) != (remote, sent.sport)}
            held[flow] = sent.sport
            closed &= held.keys()
            told = {
                (str(m.pod.address), m.pod.port, m.remote.port): m.leaves_as.port
                for m in uplink.masquerader.mappings()
            }
            assert told == held
