"""Flows as people and programs read them: with names, as they come, and told what they missed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from k8sdatapath import programs
from k8sdatapath.datapath.flow_decoder import Decoder
from k8sdatapath.datapath.flow_export import FlowExporter
from k8sdatapath.datapath.flow_filters import EventFilter
from k8sdatapath.datapath.flow_names import KnownNames, Ruling
from k8sdatapath.datapath.flow_observer import FlowObserver
from k8sdatapath.datapath.flow_requests import request_flow
from k8sdatapath.datapath.http_event import HTTPEvent
from k8sdatapath.errors import CapacityError, ClosedError, ModelError
from k8sdatapath.flow_source import FlowRing, Seen
from k8sdatapath.layout import layout_of
from k8sdatapath.model.flow import (
    HTTP,
    DropReason,
    Emitter,
    EventType,
    Flow,
    FlowEvent,
    LostEvent,
    LostEventSource,
    MonitorEvent,
    PolicyMatch,
    PolicyRef,
    ServiceRef,
    TrafficDirection,
    Verdict,
    WorkloadRef,
)
from k8sdatapath.model.flow import (
    TCP as Segment,
)
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import tcp, udp
from k8sdatapath.tables.events import EventFlags, EventRow, EventState, Level, Point
from tests.packets.listener import Listener
from tests.packets.rig import Rig, rig
from tests.packets.world import TCP, V4, V6, WORLDS, World

pytestmark = pytest.mark.packets

CLIENT = Workload.pod("shop/client", {"app": "client"}, addresses=[w.address("client") for w in WORLDS])
ONE = Workload.pod("shop/one", {"app": "one"}, addresses=[w.address("one") for w in WORLDS])
BOTH = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


@contextmanager
def observed(capacity: int = 1000, names: KnownNames | None = None) -> Iterator[tuple[Rig, FlowObserver]]:
    with rig(events=True) as datapath:
        for world in WORLDS:
            datapath.services.upsert(world.service("service", TCP, ["one"]))
            for pod in ("client", "one"):
                datapath.add_pod(world.address(pod))
        with FlowObserver.bind(
            datapath.loaded, capacity=capacity, names=names, node="default/me"
        ) as observer:
            observer.watch("all")
            yield datapath, observer


def eventually(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.01)


def flows(seen: list[Seen]) -> list[Flow]:
    return [each for each in seen if isinstance(each, Flow)]


@BOTH
def test_names(world: World) -> None:
    service = world.service("service", TCP, ["one"])
    known = {(service.address, service.port): "shop/web:http"}

    def serve(frontend: object, at: int | None) -> object:
        name = known.get((frontend.address, frontend.port))  # type: ignore[attr-defined]
        return None if name is None else type(service)(service.address, service.port, name=name)

    names = KnownNames(service=serve, device=lambda index: f"dev{index}")  # type: ignore[arg-type]
    names.learn(CLIENT, 300, owners=[WorkloadRef("client", "Deployment")], number=7)
    names.learn(ONE, 301)
    names.resolved(CLIENT.addresses[world is V6], "web.shop.", [ONE.addresses[world is V6]])
    with observed(names=names) as (datapath, observer):
        datapath.send(world.frame("client", "service", TCP, "S"))
        datapath.send(tcp(world.address("one"), world.address("client"), 8080, 40000, "SA"))
        request, answer = flows(observer.last(2))
    assert request.verdict is Verdict.FORWARDED
    assert request.summary == "TCP Flags: SYN"
    assert request.l4 == Segment(40000, 8080, 2)
    assert request.source.pod_name == "client"
    assert request.source.workloads == (WorkloadRef("client", "Deployment"),)
    assert (request.source.identity, request.source.id) == (300, 7)
    assert "k8s:app=one" in request.destination.labels
    assert request.destination_service == answer.source_service == ServiceRef("web", "shop")
    assert request.destination_names == answer.source_names == ("web.shop",)
    assert (request.is_reply, answer.is_reply) == (False, True)
    assert request.traffic_direction is TrafficDirection.INGRESS
    assert answer.traffic_direction is TrafficDirection.EGRESS
    assert request.interface.name == "dev1"
    assert request.node_name == "default/me"
    assert abs(request.time - time.time_ns()) < 60e9
    assert request.uuid != answer.uuid


def test_a_drop_has_its_reason_and_place() -> None:
    with observed() as (datapath, observer):
        frame = bytearray(V4.frame("client", "service", TCP))
        frame[16:18] = (30).to_bytes(2, "big")
        datapath.send(bytes(frame))
        (flow,) = flows(observer.last(1))
    assert (flow.verdict, flow.drop_reason) == (Verdict.DROPPED, DropReason.INVALID_PACKET_DROPPED)
    assert flow.file is not None
    assert flow.file.name == "packet.h"
    assert flow.is_reply is None
    assert flow.event_type.sub_type == 134


def test_last_and_since_and_until() -> None:
    with observed() as (datapath, observer):
        for port in range(1, 6):
            datapath.send(udp(V4.address("client"), V4.address("stranger"), port, 53))
            time.sleep(0.002)
        found = flows(observer.last(3))
        assert [each.l4.source_port for each in found] == [3, 4, 5]
        assert flows(observer.last(since=found[1].time)) == found[1:]
        assert flows(observer.last(since=found[0].time, until=found[1].time)) == found[:2]
        even = observer.last(1, matches=lambda flow: flow.l4.source_port % 2 == 0)
        assert flows(even) == [found[1]]


def test_follow_waits_for_what_comes() -> None:
    with observed() as (datapath, observer):
        cursor = observer.follow()
        found: list[Seen] = []
        reader = threading.Thread(target=lambda: found.extend(cursor.take(10)))
        reader.start()
        datapath.send(V4.frame("client", "service", TCP))
        reader.join()
        assert [each.summary for each in flows(found)] == ["TCP Flags: SYN"]


def test_follow_with_asyncio() -> None:
    async def read(observer: FlowObserver, number: int) -> list[Seen]:
        found = []
        async for each in observer.stream(last=1):
            found.append(each)
            if len(found) == number:
                break
        return found

    async def both(datapath: Rig, observer: FlowObserver) -> list[Seen]:
        readers = [asyncio.create_task(read(observer, 3)) for _ in range(2)]
        await asyncio.sleep(0)
        for flags in "AF":
            datapath.send(V4.frame("client", "service", TCP, flags))
            await asyncio.sleep(0.05)
        first, second = await asyncio.wait_for(asyncio.gather(*readers), 10)
        assert first == second
        return first

    with observed() as (datapath, observer):
        datapath.send(V4.frame("client", "service", TCP))
        found = asyncio.run(both(datapath, observer))
    assert [each.summary for each in flows(found)] == [f"TCP Flags: {flag}" for flag in ("SYN", "ACK", "FIN")]


def test_who_follows_with_asyncio_is_told_of_losses_though_nothing_follows() -> None:
    with observed(capacity=10) as (datapath, observer):

        def tell(number: int) -> None:
            for _ in range(number):
                datapath.send(V4.frame("client", "service", TCP, "A"))
            observer.span()

        async def follow() -> int:
            seen = observer.stream(last=1)
            told = 0
            for number in (1, 50, 50):
                tell(number)
                item = await anext(seen)
                told += item.num_events_lost if isinstance(item, LostEvent) else 1
            while told < 101:
                item = await asyncio.wait_for(anext(seen), 10)
                told += item.num_events_lost if isinstance(item, LostEvent) else 1
            return told

        assert asyncio.run(follow()) == 101


def test_followers_end_with_the_observer() -> None:
    with observed() as (_, observer):
        cursor = observer.follow()
        threading.Timer(0.1, observer.close).start()
        with pytest.raises(ClosedError):
            list(cursor)
    assert repr(observer) == "<FlowObserver closed>"


def test_a_stalled_reader_is_told_how_many_it_missed_and_costs_nothing() -> None:
    with observed(capacity=100) as (datapath, observer):
        stalled = observer.follow()
        frame = V4.frame("client", "service", TCP, "A")
        for _ in range(250):
            datapath.send(frame)
        assert observer.span() == (150, 250)
        lost, *rest = stalled.take()
        assert isinstance(lost, LostEvent)
        assert (lost.source, lost.num_events_lost) == (LostEventSource.HUBBLE_RING_BUFFER, 150)
        assert len(rest) == 100


def test_what_the_kernel_had_no_room_for_is_told() -> None:
    with observed(capacity=100_000) as (datapath, observer):
        frame = V4.frame("client", "service", TCP, "A")
        program = datapath.loaded.program("from_pod", programs.TC)
        with observer._taking:  # while nobody reads
            program.run_many([frame] * 2000)
        sent = 2000
        for _ in range(3):
            datapath.send(frame)
            sent += 1
        eventually(lambda: observer.span()[1] and observer.telling.told + observer.telling.full == sent)
        seen = observer.last()
        lost = [each for each in seen if isinstance(each, LostEvent)]
        assert sum(each.num_events_lost for each in lost) == observer.telling.full > 0
        assert {each.source for each in lost} == {LostEventSource.PERF_EVENT_RING_BUFFER}
        assert all(each.cpu is not None and each.first <= each.last for each in lost)
        assert len(flows(seen)) == observer.telling.told


def missed(observer: FlowObserver) -> int:
    """Events of which it is told, to those who do not look for them, that they were lost."""
    seen = observer.read(0, observer.capacity).items
    return sum(each.num_events_lost for each in seen if isinstance(each, LostEvent))


def test_what_was_above_the_rate_is_told_though_nothing_follows() -> None:
    with observed() as (datapath, observer):
        observer.watch("all", rate=5)
        frame = V4.frame("client", "service", TCP, "A")
        program = datapath.loaded.program("from_pod", programs.TC)
        program.run_many([frame])
        observer.wait(0, 10)
        time.sleep(0.1)  # nobody looks any more
        program.run_many([frame] * 500)
        limited = observer.telling.limited
        assert limited > 0
        eventually(lambda: missed(observer) == limited)


def test_the_last_after_many_is_taken_though_it_wakes_nobody() -> None:
    with observed(capacity=100_000) as (datapath, observer):
        frame = V4.frame("client", "service", TCP, "A")
        program = datapath.loaded.program("from_pod", programs.TC)
        for number in range(20):
            program.run_many([frame] * 150)  # so it looks again sooner
            time.sleep(0.003 + number * 0.0005)
            datapath.send(frame)
            told = observer.telling.told
            observer.wait(told - 1, 10)
            assert observer.packed(told - 1, told)[1]


def test_what_a_reader_takes_itself_does_not_hide_what_follows() -> None:
    """It takes what was to wake the observer's thread, and the next wakes nobody."""
    with observed() as (datapath, observer):
        frame = V4.frame("client", "service", TCP, "A")
        for _ in range(10):
            time.sleep(0.03)  # until the thread looks no more
            end = observer.span()[1]
            datapath.send(frame)
            while observer.span()[1] == end:
                pass
            datapath.send(frame)
            observer.wait(end + 1, 10)
            assert observer.packed(end + 1, end + 2)[1]


def test_what_was_told_before_wakes_nobody_and_is_taken() -> None:
    with observed() as (datapath, observer):
        frame = V4.frame("client", "service", TCP, "A")
        observer.close()
        listener = Listener(datapath.loaded)
        datapath.send(frame)
        assert listener.heard()
        datapath.send(frame)
        with FlowObserver.bind(datapath.loaded) as after:
            after.wait(0, 10)
            assert after.packed(0, 1)[1]


def test_the_kernel_holds_back_what_nobody_wants() -> None:
    with observed() as (datapath, observer):
        observer.watch("all", EventFilter(network="10.244.1.3", port=80), EventFilter(outcomes=["DROP"]))
        datapath.send(V4.frame("client", "service", TCP))
        datapath.send(V6.frame("client", "service", TCP))
        datapath.send(tcp(V4.address("client"), V4.address("stranger"), 80, 81)[:-8])
        kept = flows(observer.last())
        assert [each.verdict for each in kept] == [Verdict.FORWARDED, Verdict.DROPPED]
        observer.watch("all", EventFilter(points=[Point.FROM_UPLINK]), EventFilter(protocol="SCTP"))
        datapath.send(V4.frame("client", "service", TCP))
        assert len(observer.last()) == 2
        observer.watch(Level.DROPS)
        assert observer.level is Level.DROPS
        with pytest.raises(CapacityError):
            observer.watch("all", *[EventFilter(port=1)] * 17)
        for wrong in ({"rate": -1}, {"rate": 1 << 32}, {"interval": 1.5}):
            with pytest.raises(ModelError, match="an interval and a rate are numbers"):
                observer.watch("all", EventFilter(port=1), **wrong)
        assert observer.level is Level.DROPS, "what is wrong changes nothing"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: EventFilter(port=65536),
        lambda: EventFilter(identity=-1),
        lambda: EventFilter(network="no"),
        lambda: EventFilter(outcomes=["DROP_NONSENSE"]),
        lambda: EventFilter(protocol="IGMP"),
        lambda: EventFilter(points=[99]),
        lambda: EventFilter(points=["CONNECT"]),
    ],
)
def test_filters_that_cannot_be(wrong: Callable[[], EventFilter]) -> None:
    with pytest.raises(ModelError):
        wrong()


def test_who_was_denied_by_a_rule_is_told_which() -> None:
    ruling = Ruling((PolicyRef("deny", "shop", kind="NetworkPolicy"),), True)
    names = KnownNames(ruling=lambda counter, at: ruling if counter else None)
    assert names.ruling(3) == ruling
    assert names.ruling(0) is None


def test_columns_and_tables() -> None:
    names = KnownNames()
    names.learn(CLIENT, 300)
    with observed(names=names) as (datapath, observer):
        for world in WORLDS:
            datapath.send(world.frame("client", "service", TCP, "S"))
        datapath.send(V4.frame("client", "stranger", TCP)[:40])
        columns = observer.columns()
        tables = [observer.to_pandas(), observer.to_polars().to_pandas(), observer.to_arrow().to_pandas()]
        newest = observer.to_pandas(last=1)
        with pytest.raises(ModelError, match="-1 events"):
            observer.columns(last=-1)
    assert columns["destination_port"].tolist() == [8080, 8080, 0]
    assert columns["time"].tolist() == sorted(columns["time"].tolist())
    for table in tables:
        assert table["outcome"].tolist() == ["TO_POD", "TO_POD", "DROP_MALFORMED"]
        assert table["source"].tolist()[:2] == [world.address("client") for world in WORLDS]
        assert table["source_pod"].tolist()[:2] == ["client", "client"]
        assert table["source_identity"].tolist()[:2] == [300, 300]
        assert table["dialled"].tolist()[:2] == [world.address("service") for world in WORLDS]
        assert table["dialled_port"].tolist()[:2] == [80, 80]
        assert table["state"].tolist()[:2] == ["NEW", "NEW"]
        assert abs(int(table["time"].astype("int64").iloc[0]) - time.time_ns()) < 60e9
    assert newest["outcome"].tolist() == ["DROP_MALFORMED"]


def test_tables_have_the_names_of_their_time() -> None:
    names = KnownNames()
    pods = [Workload.pod(f"shop/{name}", addresses=[V4.address("client")]) for name in ("a", "b")]
    with observed(names=names) as (datapath, observer):
        for number, pod in enumerate(pods, 300):
            names.learn(pod, number)
            datapath.send(V4.frame("client", "one", TCP, "A"))
        table = observer.to_pandas()
        told = [flow.source.pod_name for flow in observer.last()]
    assert told == table["source_pod"].tolist() == ["a", "b"]
    assert table["source_identity"].tolist() == [300, 301]


def test_files_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    with observed() as (datapath, observer):
        fields = ["time", "verdict", "l4.TCP.destination_port"]
        with FlowExporter(observer, path, fields=fields, max_bytes=1000, backups=2) as exporter:
            for _ in range(30):
                datapath.send(V4.frame("client", "service", TCP, "A"))
        assert exporter.error is None
    files = [path, *(path.with_name(f"flows.json.{number}") for number in (1, 2))]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    for each in files[1:]:
        assert each.stat().st_size < 1400
    lines = [json.loads(line) for each in files for line in each.read_text().splitlines()]
    assert lines[0]["node_name"] == "default/me"
    assert {tuple(line["flow"]) for line in lines} == {("time", "verdict", "l4")}
    assert lines[0]["flow"]["l4"] == {"TCP": {"destination_port": 8080}}
    assert isinstance(FlowEvent.from_dict(lines[0]).response, Flow)


def test_what_has_come_before_it_ends_is_written(tmp_path: Path) -> None:
    with observed(capacity=4096) as (datapath, observer):
        with FlowExporter(observer, tmp_path / "flows.json"):
            for _ in range(300):
                datapath.send(V4.frame("client", "service", TCP, "A"))
        lines = (tmp_path / "flows.json").read_text().splitlines()
        assert len(lines) == observer.span()[1] == 300
    ring = FlowRing(4096)
    with FlowExporter(ring, tmp_path / "ring.json"):
        ring.add(*(Flow(time=number) for number in range(4000)))
    assert len((tmp_path / "ring.json").read_text().splitlines()) == 4000


class Requests:
    """What stands for the programs that read requests."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK)
        self._events: deque[HTTPEvent] = deque()

    def fileno(self) -> int:
        return self._read

    def see(self, verdict: str, status: int = 0, latency: float | None = None) -> None:
        client, server = (ip_address(V4.address(each)) for each in ("client", "one"))
        said = {
            "time": time.monotonic(),
            "at": "server",
            "identity": 300,
            "reason": "",
            "rule": None,
            "connection": 7,
        }
        asked = {"method": "GET", "path": "/a", "host": "web", "status": status, "latency": latency}
        event = HTTPEvent(client=(client, 40000), server=(server, 8080), verdict=verdict, **said, **asked)  # type: ignore[arg-type]
        self._events.append(event)
        os.write(self._write, b"1")

    def events(self) -> list[HTTPEvent]:
        with suppress(BlockingIOError):
            os.read(self._read, 4096)
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


def test_requests_are_told_once_however_many_look() -> None:
    with closing(Requests()) as requests, observed(capacity=5000) as (_, observer):
        ended = threading.Event()

        def look() -> None:
            while not ended.is_set():
                observer.span()

        readers = [threading.Thread(target=look) for _ in range(4)]
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for each in readers:
                each.start()
            for _ in range(2000):
                requests.see("denied")
            observer.listen(requests)
            observer.wait(1999, 10)
        finally:
            ended.set()
            for each in readers:
                each.join()
            sys.setswitchinterval(before)
        assert len({flow.uuid for flow in observer.last(5000)}) == observer.span()[1] == 2000


def test_requests_are_flows() -> None:
    names = KnownNames()
    names.learn(CLIENT, 300)
    with closing(Requests()) as requests, observed(names=names) as (datapath, observer):
        observer.listen(requests)
        cursor = observer.follow()
        requests.see("denied")
        requests.see("audited")
        requests.see("response", 200, 0.012)
        found: list[Flow] = []
        eventually(lambda: found.extend(flows(cursor.take(1))) or len(found) == 3)
        datapath.send(V4.frame("client", "service", TCP))
        assert len({each.uuid for each in flows(observer.last())} - {""}) == 4
        assert observer.to_pandas()["outcome"].tolist() == ["TO_POD"]
    denied, audited, answer = found
    assert (denied.verdict, denied.drop_reason) == (Verdict.DROPPED, DropReason.POLICY_DENIED)
    assert denied.summary == "HTTP/1.1 GET http://web/a"
    assert denied.source.pod_name == "client"
    assert denied.l4 == Segment(40000, 8080)
    assert audited.verdict is Verdict.AUDIT
    assert answer.summary == "HTTP/1.1 200 12ms (GET http://web/a)"
    assert (answer.is_reply, answer.l4) == (True, Segment(8080, 40000))
    assert abs(answer.time - time.time_ns()) < 60e9


def asked(world: World, **said: object) -> HTTP:
    """What a flow says of a request."""
    client, server = (ip_address(world.address(each)) for each in ("client", "one"))
    told = {
        "time": 1.0, "client": (client, 40000), "server": (server, 8080), "at": "server", "identity": 0,
        "verdict": "denied", "reason": "", "rule": None, "method": "GET", "path": "/a", "host": "",
        "status": 0, "latency": None, "connection": 0,
    }  # fmt: skip
    event = HTTPEvent(**(told | said))  # type: ignore[arg-type]
    flow = request_flow(event, KnownNames(), clock=0, node="default/me", emitter=Emitter("", ""))
    assert flow.l7 is not None
    assert isinstance(flow.l7.record, HTTP)
    return flow.l7.record


@pytest.mark.parametrize(("world", "url"), [(V4, "http://{}:8080/a"), (V6, "http://[{}]:8080/a")])
def test_where_a_request_names_no_host_the_address_is_in_the_url(world: World, url: str) -> None:
    assert asked(world).url == url.format(world.address("one"))


def test_a_request_says_which_http_it_is_of() -> None:
    assert [asked(V4).protocol, asked(V4, protocol="HTTP/2").protocol] == ["HTTP/1.1", "HTTP/2"]


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("http://me:secret@web/a?b", "http://me:secret@web/a?b"),
        ("*", "http://web/*"),
        ("", "http://web"),
    ],
)
def test_what_is_asked_for_need_not_be_a_path(target: str, url: str) -> None:
    assert asked(V4, host="web", path=target).url == url


def test_of_too_many_requests_the_oldest_are_forgotten() -> None:
    decoder = Decoder(KnownNames(), {}, "default/me", "1")
    records = b"".join(decoder.keep(Flow(uuid=str(number)), number) for number in range(16385))
    first, second, *_, last = decoder.decode(records, 0)
    assert isinstance(first, LostEvent)
    assert [each.uuid for each in (second, last) if isinstance(each, Flow)] == ["1", "16384"]


def test_what_a_policy_only_looks_at_is_audited() -> None:
    decoder = Decoder(KnownNames(), {1: "PASS", 11: "REJECT_DENIED"}, "default/me", "1")
    pack = layout_of(EventRow)
    nothing = pack.unpack(bytes(pack.size))
    rows = [
        evolve(nothing, result=1, flags=EventFlags.AUDITED | EventFlags.DENIED_BY_DESTINATION, protocol=17),
        evolve(nothing, result=11, flags=EventFlags.DENIED_BY_SOURCE, protocol=17),
    ]
    audited, refused = flows(decoder.decode(b"".join(map(pack.pack, rows)), 0))
    assert (audited.verdict, audited.event_type) == (Verdict.AUDIT, EventType(MonitorEvent.POLICY_VERDICT))
    assert (refused.verdict, refused.drop_reason) == (Verdict.DROPPED, DropReason.POLICY_DENIED)


@pytest.mark.parametrize(
    ("said", "direction", "match"),
    [
        ({"destination_rule": 1, "source_rule": 2}, TrafficDirection.INGRESS, PolicyMatch.L3_L4),
        ({"destination_rule": 3, "source_rule": 2}, TrafficDirection.EGRESS, PolicyMatch.L4_ONLY),
        ({"destination_rule": 3}, TrafficDirection.EGRESS, PolicyMatch.NONE),  # seen as it leaves a pod
        (
            {"destination_rule": 1, "source_rule": 2, "state": EventState.REPLY},
            TrafficDirection.EGRESS,
            PolicyMatch.L3_L4,
        ),
        (
            {"source_rule": 2, "result": 11, "flags": EventFlags.DENIED_BY_SOURCE},
            TrafficDirection.EGRESS,
            PolicyMatch.L4_ONLY,
        ),
        (
            {"destination_rule": 3, "result": 11, "flags": EventFlags.DENIED_BY_DESTINATION},
            TrafficDirection.INGRESS,
            PolicyMatch.NONE,
        ),
    ],
)
def test_a_verdict_is_told_as_the_pod_sees_it_whose_rule_decides(
    said: dict[str, Any], direction: TrafficDirection, match: PolicyMatch
) -> None:
    rulings = {
        1: Ruling((), True, PolicyMatch.L3_L4),
        2: Ruling((), True, PolicyMatch.L4_ONLY),
        3: Ruling((), False),
    }
    decoder = Decoder(
        KnownNames(ruling=lambda counter, at: rulings.get(counter)),
        {1: "PASS", 11: "REJECT_DENIED"},
        "default/me",
        "1",
    )
    pack = layout_of(EventRow)
    asked = {"result": 1, "flags": EventFlags.SOURCE_ASKED | EventFlags.DESTINATION_ASKED, "protocol": 6}
    row = evolve(pack.unpack(bytes(pack.size)), **(asked | said))
    (flow,) = flows(decoder.decode(pack.pack(row), 0))
    assert (flow.traffic_direction, flow.policy_match_type) == (direction, match)
