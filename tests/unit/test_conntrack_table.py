"""Garbage collection and listing of flows, over maps in memory."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath import maps
from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.flow import FlowFilter, FlowState, Timeouts
from k8sdatapath.errors import ContractError
from k8sdatapath.model import Frontend, Protocol
from k8sdatapath.tables.conntrack import ConntrackRow, FlowFlags, Tuple

NOW = 100_000
TCP, UDP, ICMP = 6, 17, 1
VIPS = [ip_address("10.96.0.10"), ip_address("fd00:96::10")]
BACKENDS = [ip_address("10.244.1.3"), ip_address("fd00:244:1::3")]
CLIENTS = [ip_address("10.244.1.2"), ip_address("fd00:244:1::2")]
NODES = [ip_address("192.0.2.11"), ip_address("2001:db8::11")]
Flows = maps.LRUHash[Tuple, ConntrackRow]


def reverse(tuple_: Tuple) -> Tuple:
    return Tuple(tuple_.dst, tuple_.src, tuple_.dport, tuple_.sport, tuple_.protocol)


@frozen
class Made:
    """A flow as the programs would have left it: how long ago each half saw a packet (None: never)."""

    number: int
    protocol: int
    original: int | None  # seconds of silence; None: this half was evicted
    reply: int | None
    answered: bool
    flags: tuple[int, int] = (0, 0)

    @property
    def key(self) -> Tuple:
        family = self.number % 2
        return Tuple(CLIENTS[family], VIPS[family], 1024 + self.number, 80, self.protocol)

    @property
    def to(self) -> Tuple:
        family = self.number % 2
        to = evolve(self.key, dst=BACKENDS[family], dport=8080)
        if self.number % 3 == 2:  # the client's address is translated too, as towards another node
            return evolve(to, src=NODES[family], sport=50_000 + self.number)
        return to

    @property
    def entries(self) -> dict[Tuple, ConntrackRow]:
        made = {}
        if self.original is not None:
            flags = self.flags[0] | (FlowFlags.SEEN_REPLY if self.answered else 0)
            made[self.key] = ConntrackRow(self.to, 3, 0, 7, NOW - self.original, flags)
        if self.reply is not None:
            seen = NOW - self.reply if self.answered else 0
            flags = self.flags[1] | FlowFlags.REPLY
            made[reverse(self.to)] = ConntrackRow(reverse(self.key), 2, 0, 7, seen, flags)
        return made

    @property
    def state(self) -> FlowState:
        """Said once more, in other words than the product's."""
        if self.protocol != TCP:
            return FlowState.ANSWERED if self.answered else FlowState.ONE_WAY
        held = [
            f for f, half in zip(self.flags, (self.original, self.reply), strict=True) if half is not None
        ]
        if any(f & FlowFlags.RST for f in held) or [bool(f & FlowFlags.FIN) for f in held] == [True, True]:
            return FlowState.CLOSED
        return FlowState.ESTABLISHED if self.answered else FlowState.OPENING

    @property
    def silence(self) -> int:
        seen = [] if self.original is None else [self.original]
        if self.reply is not None and self.answered:
            seen.append(self.reply)
        return min(seen, default=NOW)


SILENCE = st.sampled_from([0, 1, 9, 10, 11, 30, 31, 60, 61, 119, 121, 7999, 8000, 8001, 90_000])
CLOSING = st.sampled_from([0, FlowFlags.FIN, FlowFlags.RST, FlowFlags.FIN | FlowFlags.RST])


@st.composite
def worlds(draw: st.DrawFn) -> list[Made]:
    made = []
    for number in range(draw(st.integers(0, 12))):
        protocol = draw(st.sampled_from([TCP, UDP, ICMP]))
        lost = draw(st.sampled_from(["", "", "", "original", "reply"]))
        answered = draw(st.booleans())
        flags = draw(st.tuples(CLOSING, CLOSING)) if protocol == TCP else (0, 0)
        if not answered:
            flags = (flags[0], 0)
        made.append(
            Made(
                number,
                protocol,
                None if lost == "original" else draw(SILENCE),
                None if lost == "reply" else draw(SILENCE),
                answered,
                flags,
            )
        )
    return made


@pytest.fixture
def flows() -> Iterator[Flows]:
    with maps.in_memory(Flows, "kd_conntrack", 1024) as made:
        yield made


@pytest.fixture(autouse=True)
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory there are none to wait for."""
    monkeypatch.setattr("k8sdatapath.pybpf.memory.wait_for_programs", lambda: None)


def fill(flows: Flows, world: list[Made]) -> ConntrackTable:
    for made in world:
        flows.update_many(made.entries)
    return ConntrackTable.bind({"kd_conntrack": flows})


@given(world=worlds())
def test_a_flow_goes_whole_when_it_was_silent_too_long_and_not_before(world: list[Made]) -> None:
    with maps.in_memory(Flows, "kd_conntrack", 1024) as flows:
        table = fill(flows, world)
        over = [made for made in world if made.silence > table.timeouts.of(made.state)]
        kept = {key: row for made in world if made not in over for key, row in made.entries.items()}
        assert table.collect(NOW) == len(over)
        assert dict(flows.items()) == kept
        assert table.collect(NOW) == 0


@given(world=worlds())
def test_listing_tells_every_flow_once_and_as_it_is(world: list[Made]) -> None:
    with maps.in_memory(Flows, "kd_conntrack", 1024) as flows:
        table = fill(flows, world)
        told = {flow.client.port: flow for flow in table.flows(now=NOW)}
        assert len(list(table.flows())) == len(told) == len(world)
        for made in world:
            flow = told[made.key.sport]
            family = made.number % 2
            assert flow.client.address == CLIENTS[family]
            assert (flow.frontend.address, flow.frontend.port) == (VIPS[family], 80)
            assert (flow.backend.address, flow.backend.port) == (BACKENDS[family], 8080)
            assert (flow.protocol, flow.state, flow.age) == (made.protocol, made.state, made.silence)
            assert flow.packets == sum(row.packets for row in made.entries.values())
        stats = table.stats()
        assert stats.entries == len(flows)
        assert sum(stats.states.values()) == len(world)


def test_what_is_half_closed_lives_on(flows: Flows) -> None:
    """One side has nothing more to say; the other may take its time to answer."""
    table = fill(flows, [Made(0, TCP, 100, 100, True, (FlowFlags.FIN, 0))])
    assert table.collect(NOW) == 0
    assert [flow.state for flow in table.flows()] == [FlowState.ESTABLISHED]


def test_timeouts_are_those_given(flows: Flows) -> None:
    fill(flows, [Made(0, TCP, 100, 100, True), Made(1, UDP, 100, 100, True)])
    table = ConntrackTable.bind({"kd_conntrack": flows}, timeouts=Timeouts(established=99))
    assert table.collect(NOW) == 1
    with pytest.raises(ValueError, match="'closed' must be > 0"):
        Timeouts(closed=0)


def test_another_flows_entry_in_the_place_of_a_half_stays(flows: Flows) -> None:
    """Two frontends, one client port, one backend: the reply belongs to the younger flow."""
    old, young = Made(0, UDP, 90_000, 0, True), Made(0, UDP, 1, 1, True)
    other_vip = evolve(young.key, dst=ip_address("10.96.0.11"))
    replies = evolve(young.entries[reverse(young.to)], to=reverse(other_vip))
    flows.update_many({old.key: old.entries[old.key]})
    flows.update_many({other_vip: young.entries[young.key], reverse(young.to): replies})
    table = ConntrackTable.bind({"kd_conntrack": flows})
    assert table.collect(NOW) == 1
    assert set(flows) == {other_vip, reverse(young.to)}


def test_a_flow_begun_anew_while_it_is_taken_away_keeps_both_halves(
    flows: Flows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(0, TCP, 90_000, 90_000, True, (FlowFlags.RST, 0))
    table = fill(flows, [made])
    delete = flows.delete_packed
    again = ConntrackRow(made.to, 1, 0, 9, NOW, 0)

    def delete_and_begin(keys: bytes) -> int:
        """A SYN comes right after the original half is gone, and makes both."""
        gone = delete(keys)
        if made.key not in flows and reverse(made.to) in flows:
            flows.update_many({reverse(made.to): made.entries[reverse(made.to)], made.key: again})
        return gone

    monkeypatch.setattr(flows, "delete_packed", delete_and_begin)
    table.collect(NOW)
    assert flows[made.key] == again
    assert flows[reverse(made.to)] == ConntrackRow(reverse(made.key), 0, 0, 9, 0, FlowFlags.REPLY)


def test_a_flow_that_speaks_up_after_it_was_suspected_stays(
    flows: Flows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(0, UDP, 90_000, 90_000, True)
    table = fill(flows, [made])

    def speak() -> None:
        flows[made.key] = evolve(flows[made.key], last_seen=NOW)

    monkeypatch.setattr("k8sdatapath.pybpf.memory.wait_for_programs", speak)
    assert table.collect(NOW) == 0
    assert len(flows) == 2


FILTERS = {
    "nothing said": (FlowFilter(), {0, 1, 2, 3}),
    "client": (FlowFilter(client=CLIENTS[0]), {0, 2}),
    "backend": (FlowFilter(backend=BACKENDS[1]), {1, 3}),
    "frontend": (FlowFilter(frontend=Frontend(VIPS[0], 80)), {0}),
    "frontend of another port": (FlowFilter(frontend=Frontend(VIPS[0], 81)), set()),
    "protocol": (FlowFilter(protocol=Protocol.UDP), {2, 3}),
    "state": (FlowFilter(state=FlowState.OPENING), {1}),
    "two at once": (FlowFilter(client=CLIENTS[1], protocol=Protocol.TCP), {1}),
}


@pytest.mark.parametrize(("only", "meant"), FILTERS.values(), ids=FILTERS)
def test_flush_takes_the_flows_that_are_meant(flows: Flows, only: FlowFilter, meant: set[int]) -> None:
    world = [
        Made(0, TCP, 1, 1, True),
        Made(1, TCP, 1, 1, False),
        Made(2, UDP, 1, 1, True),
        Made(3, UDP, 1, 1, True),
    ]
    table = fill(flows, world)
    assert {flow.client.port - 1024 for flow in table.flows(only)} == meant
    assert table.flush(only) == len(meant)
    assert set(flows) == {key for made in world if made.number not in meant for key in made.entries}


def test_stats_tell_pressure_and_states(flows: Flows) -> None:
    table = fill(flows, [Made(0, TCP, 1, 1, True), Made(1, UDP, 1, None, False)])
    stats = table.stats()
    assert (stats.entries, stats.capacity, stats.pressure) == (3, 1024, 3 / 1024)
    assert stats.states == {FlowState.ESTABLISHED: 1, FlowState.ONE_WAY: 1}


def test_a_flow_reads_as_people_write_it(flows: Flows) -> None:
    table = fill(flows, [Made(0, TCP, 1, 1, True), Made(1, ICMP, 1, 1, True)])
    assert sorted(map(str, table.flows())) == [
        "1 [fd00:244:1::2]:1025 -> [fd00:96::10]:80 -> [fd00:244:1::3]:8080 answered",
        "TCP 10.244.1.2:1024 -> 10.96.0.10:80 -> 10.244.1.3:8080 established",
    ]
    assert repr(table) == "<ConntrackTable <LRUHash kd_conntrack Tuple->ConntrackRow 4/1024>>"


def test_a_source_without_the_map_is_refused() -> None:
    with pytest.raises(ContractError, match="a conntrack table needs kd_conntrack"):
        ConntrackTable.bind({})


@pytest.mark.parametrize("more", [0, FlowFlags.RST, FlowFlags.SEEN_REPLY, FlowFlags.GONE])
@pytest.mark.parametrize("has_original", [False, True])
@pytest.mark.parametrize("number", range(2))
def test_only_what_was_made_alone_and_never_answered_is_completed(
    number: int, has_original: bool, more: int
) -> None:
    key = Tuple(CLIENTS[number], BACKENDS[number], 40000, 80, UDP)
    to = evolve(key, src=NODES[number])
    flags = FlowFlags.REPLY | FlowFlags.SOURCE | FlowFlags.ALONE | more
    made = {reverse(to): ConntrackRow(reverse(key), 1, 0, 0, NOW, flags)}
    if has_original:
        made[key] = ConntrackRow(to, 5, 0, 0, NOW + 1, FlowFlags.SOURCE)
    with maps.in_memory(Flows, "kd_conntrack", 10) as flows:
        flows.update_many(made)
        ConntrackTable.bind({"kd_conntrack": flows}).complete()
        if not has_original and more in (0, FlowFlags.RST):
            made[key] = ConntrackRow(to, 0, 0, 0, NOW, FlowFlags.SOURCE)
        assert dict(flows.items()) == made
