"""Which ports flows leave from: all there are, each once, found in bounded time."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath import maps
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import tcp
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.masquerade import ExhaustedRow
from tests.packets.uplink import PODS, SOURCES, WORLD, opened


def test_sixty_thousand_flows_to_one_end_and_one_more(uplink_netns: NetNs) -> None:
    with opened(uplink_netns, port_min=5000, port_max=64999) as uplink:

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


def test_no_packet_looks_at_more_than_a_part_of_the_ports_and_the_next_goes_on(uplink_netns: NetNs) -> None:
    count = 10_000
    with opened(uplink_netns, port_min=5000, port_max=5000 + count - 1) as uplink:
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


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["open", "open", "open", "answer", "go on", "close"]),
            st.sampled_from(PODS),
            st.integers(998, 1007),
            st.sampled_from([80, 81]),
        ),
        max_size=60,
    )
)
def test_ports_are_given_as_the_model_says(
    uplink_netns: NetNs, steps: list[tuple[str, str, int, int]]
) -> None:
    """Six ports: the flow's own if it is one and free, else any that is, and none only if there is none."""
    ports = range(1000, 1006)
    with opened(uplink_netns, port_min=ports[0], port_max=ports[-1]) as uplink:
        held: dict[tuple[str, int, int], int] = {}  # flow -> port on the wire
        closed: set[tuple[str, int, int]] = set()
        for what, pod, port, remote in steps:
            flow = (pod, port, remote)
            if what != "open" and flow not in held:
                continue
            if what == "answer":
                told_to = uplink.answer(tcp(WORLD, SOURCES[4], remote, held[flow], "A"))
                assert (str(told_to.dst), told_to.dport) == (pod, port)
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
