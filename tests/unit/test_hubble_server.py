"""The server of flows, asked by a client that shares nothing with it."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from attrs import evolve
from google.protobuf import json_format

import k8sdatapath
from k8sdatapath.errors import ConfigError
from k8sdatapath.flow_source import FlowRing
from k8sdatapath.hubble import (
    AgentEvents,
    HubbleServer,
    PeerNode,
    Peers,
    ServerOptions,
    observer,
)
from k8sdatapath.model.agent_event import AgentEvent, AgentEventType, TimeNotification
from k8sdatapath.model.flow import Endpoint, Flow, LostEvent, LostEventSource
from k8sdatapath.model.flow_match import Matcher
from tests.support.flows import CASES, FULL, REFUSED, RESOLVED, SECOND, START
from tests.support.hubble_client import ANY, HubbleClient, message, status


class Served:
    """A server on a ring, with a client."""

    def __init__(self, **options: Any) -> None:
        self.ring = FlowRing(options.pop("capacity", 1000))
        self.events, self.peers = AgentEvents(), Peers([PeerNode("default/one", "192.0.2.1:4244")])
        given = ServerOptions(listen=(ANY,), node="default/here", **options)
        self.server = HubbleServer(self.ring, given, events=self.events, peers=self.peers)
        self.client = HubbleClient(self.server.addresses[0])

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.channel.close()
        self.server.close()


@pytest.fixture(scope="module")
def full() -> Iterator[Served]:
    """With two flows in it: one that says everything, and another."""
    with Served() as served:
        served.ring.add(FULL, RESOLVED)
        yield served


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


def flow(number: int) -> Flow:
    return Flow(time=START + number * SECOND, uuid=str(number), node_name="default/there")


def uuids(flows: list[Any]) -> list[int]:
    return [int(each.uuid) for each in flows]


def filter_of(field: str, value: Any) -> Any:
    """A filter with one value, as a client makes it of JSON."""
    return json_format.ParseDict({field: [value]}, message("flow.FlowFilter")())


def test_a_flow_comes_as_it_is(full: Served) -> None:
    answers = list(full.client.ask("GetFlows"))
    assert [json_format.MessageToDict(each.flow, preserving_proto_field_name=True) for each in answers] == [
        FULL.to_dict(),
        RESOLVED.to_dict(),
    ]
    assert [each.node_name for each in answers] == ["prod-eu/node-1", "node-2"]
    assert answers[0].time.ToNanoseconds() == FULL.time


@pytest.mark.parametrize("field", CASES)
def test_every_field_of_a_filter_finds_what_it_says(full: Served, field: str) -> None:
    hits, misses = CASES[field]
    for value in hits:
        assert FULL.uuid in [each.uuid for each in full.client.flows(whitelist=[filter_of(field, value)])], (
            value
        )
        denied = full.client.flows(blacklist=[filter_of(field, value)])
        assert FULL.uuid not in [each.uuid for each in denied], value
    for value in misses:
        assert FULL.uuid not in [
            each.uuid for each in full.client.flows(whitelist=[filter_of(field, value)])
        ], value


@pytest.mark.parametrize(("given", "wrong"), REFUSED, ids=range(len(REFUSED)))
def test_filters_that_cannot_be_are_refused(full: Served, given: dict[str, Any], wrong: str) -> None:
    request = {"whitelist": [json_format.ParseDict(given, message("flow.FlowFilter")())]}
    code, details = status(full.client.ask("GetFlows", **request))
    assert code == "INVALID_ARGUMENT"
    assert wrong in details
    assert details.startswith("allow[0].")


def test_too_many_filters_are_refused(full: Served) -> None:
    call = full.client.ask("GetFlows", blacklist=[{}] * 5000)
    assert status(call) == ("INVALID_ARGUMENT", "deny: 1000 filters are more than 256")


def test_nothing_is_looked_for_whose_client_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, begun = 0, threading.Event()

    def slow(*lists: object) -> Matcher:
        def matches(flow: Flow) -> bool:
            nonlocal seen
            seen += 1
            begun.set()
            time.sleep(0.001)
            return False

        return matches

    monkeypatch.setattr(observer, "matcher", slow)
    with Served(capacity=20_000) as served:
        served.ring.add(*[RESOLVED] * 20_000)
        call = served.client.ask("GetFlows", number=1)
        assert begun.wait(10)
        call.cancel()
    assert 0 < seen < 20_000


def test_what_is_too_big_is_refused_unread(full: Served) -> None:
    call = full.client.ask("GetFlows", whitelist=[{"uuid": ["x" * 2_000_000]}])
    assert status(call)[0] == "RESOURCE_EXHAUSTED"


def test_masks_leave_what_they_name_and_time_and_node(full: Served) -> None:
    paths = ["source.pod_name", "IP.destination", "verdict"]
    answer = next(iter(full.client.ask("GetFlows", first=True, field_mask={"paths": paths})))
    assert json_format.MessageToDict(answer.flow, preserving_proto_field_name=True) == {
        "source": {"pod_name": "frontend-v1-abcde"},
        "IP": {"destination": "10.244.2.7"},
        "verdict": "DROPPED",
    }
    assert answer.node_name == "prod-eu/node-1"
    assert answer.time.ToNanoseconds() == FULL.time


def test_masks_that_lead_nowhere_are_refused(full: Served) -> None:
    call = full.client.ask("GetFlows", field_mask={"paths": ["source.nope"]})
    assert status(call) == ("INVALID_ARGUMENT", "field_mask: 'source.nope' leads nowhere in a flow")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, range(10)),
        ({"number": 3}, [7, 8, 9]),
        ({"number": 2**64 - 1}, range(10)),
        ({"number": 3, "first": True}, [0, 1, 2]),
        ({"since": {"seconds": START // SECOND + 7}}, [7, 8, 9]),
        ({"since": {"seconds": START // SECOND + 4}, "number": 2}, [4, 5]),
        ({"since": {"seconds": START // SECOND + 4}, "until": {"seconds": START // SECOND + 6}}, [4, 5, 6]),
        ({"until": {"seconds": START // SECOND + 1}}, [0, 1]),
        ({"number": 2, "whitelist": [{"uuid": ["1", "2", "3"]}]}, [2, 3]),
        ({"number": 2, "blacklist": [{"uuid": ["9", "8"]}]}, [6, 7]),
        ({"since": {"seconds": 2**40}}, []),
    ],
    ids=range(11),
)
def test_so_many_or_since_then(served: Served, request_: dict[str, Any], expected: list[int]) -> None:
    served.ring.add(*(flow(number) for number in range(10)))
    assert uuids(served.client.flows(**request_)) == list(expected)


def test_first_and_follow_exclude_each_other(served: Served) -> None:
    call = served.client.ask("GetFlows", first=True, follow=True)
    assert status(call) == ("INVALID_ARGUMENT", "first cannot be specified with follow")


def test_who_follows_is_told_what_comes(served: Served) -> None:
    served.ring.add(*(flow(number) for number in range(5)))
    call = served.client.ask("GetFlows", follow=True, number=2)
    found = [next(call).flow for _ in range(2)]
    served.ring.add(flow(5))
    found.append(next(call).flow)
    assert uuids(found) == [3, 4, 5]
    only_new = served.client.ask("GetFlows", follow=True, whitelist=[{"uuid": ["7"]}])
    assert only_new.initial_metadata() is not None  # comes at once: it is being served
    served.ring.add(flow(6), flow(7))
    assert next(only_new).flow.uuid == "7"
    call.cancel()
    only_new.cancel()


def test_losses_are_told_whatever_is_asked(served: Served) -> None:
    lost = LostEvent(LostEventSource.PERF_EVENT_RING_BUFFER, 7, 3, START, START + 1)
    served.ring.add(lost)
    (answer,) = served.client.ask("GetFlows", whitelist=[{"uuid": ["none"]}])
    assert answer.lost_events.source == 1
    assert answer.lost_events.num_events_lost == 7
    assert answer.lost_events.cpu.value == 3
    assert answer.node_name == "default/here"
    assert (answer.time.seconds, answer.time.nanos) == divmod(START + 1, SECOND)
    served.ring.add(LostEvent(LostEventSource.HUBBLE_RING_BUFFER, 1))
    *_, answer = served.client.ask("GetFlows", whitelist=[{"uuid": ["none"]}])
    assert not answer.HasField("time")  # nobody knows when: not in 1970


def test_a_client_that_does_not_read_costs_nothing_and_is_told_what_it_missed() -> None:
    with Served(capacity=200, streams=64) as served:
        slow = [served.client.ask("GetFlows", follow=True) for _ in range(40)]
        for call in slow:
            call.initial_metadata()
        big = evolve(FULL, summary="x" * 4000)
        tracemalloc.start()
        try:
            for _ in range(20):
                served.ring.add(*[big] * 200)
                time.sleep(0.02)
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert grown < 20 << 20, "the ring, and a chunk for each at most"
        served.ring.add(flow(1))
        told = []
        for answer in slow[0]:
            told.append(answer)
            if answer.flow.uuid == "1":
                break
        lost = sum(answer.lost_events.num_events_lost for answer in told)
        assert lost > 0
        assert sum(answer.HasField("flow") for answer in told) <= 4001 - lost
        for call in slow:
            call.cancel()


def test_one_client_too_many_is_told_so_and_others_go_on() -> None:
    with Served(streams=3) as served:
        calls = [served.client.ask("GetFlows", follow=True) for _ in range(3)]
        for call in calls:
            call.initial_metadata()
        code, details = status(served.client.ask("GetFlows", follow=True))
        assert (code, details) == ("RESOURCE_EXHAUSTED", "3 clients are served already, come back later")
        assert served.client.ask("ServerStatus").max_flows == 1000
        for call in calls:
            call.cancel()
        deadline = time.monotonic() + 10  # those who left are noticed within a second
        while (code := served.client.ask("GetFlows").code().name) != "OK":
            assert code == "RESOURCE_EXHAUSTED"
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_thousands_at_once_get_an_answer_each() -> None:
    with Served(streams=8) as served:
        calls = [served.client.ask("GetFlows", follow=True) for _ in range(2000)]
        answers: list[tuple[str, str]] = []
        refused = threading.Semaphore(0)
        for call in calls:
            call.add_done_callback(lambda _: refused.release())
        for _ in range(2000 - 8):
            assert refused.acquire(timeout=60)
        for call in calls:
            if call.done():
                answers.append((call.code().name, call.details()))
            else:
                call.cancel()
        others = [each for each in answers if each[0] != "RESOURCE_EXHAUSTED"]
        assert (len(answers), others) == (1992, [])


def test_connections_leave_descriptors_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (20, 20))
    with HubbleServer(FlowRing(), ServerOptions(listen=(ANY,))) as server:
        host, _, port = server.addresses[0].rpartition(":")
        with ExitStack() as own:
            idle = [own.enter_context(socket.create_connection((host, int(port)))) for _ in range(30)]
            for each in idle:
                each.settimeout(1)
            greeted = [each for each in idle if greets(each)]
            assert len(greeted) == 10
        with HubbleClient(server.addresses[0]) as client:
            grpc.channel_ready_future(client.channel).result(timeout=30)
            assert client.ask("ServerStatus").max_flows == 4095


def greets(server: socket.socket) -> bool:
    """Whether the other end speaks HTTP/2, and does not hang up."""
    try:
        return len(server.recv(9)) == 9
    except OSError:
        return False


def test_the_status_is_that_of_the_ring(full: Served) -> None:
    told = full.client.ask("ServerStatus")
    assert (told.num_flows, told.max_flows, told.seen_flows) == (2, 1000, 2)
    assert told.uptime_ns > 0
    assert told.version == f"k8sdatapath v{k8sdatapath.__version__}"
    assert not told.HasField("num_connected_nodes")


def test_the_health_of_what_clients_ask_for_is_told(full: Served) -> None:
    assert full.client.health("hubble.server.Observer") == b"\x08\x01"
    assert full.client.health("") == b"\x08\x01"
    assert status(lambda: full.client.health("nobody"))[0] == "NOT_FOUND"


def test_nodes_are_this_one(full: Served) -> None:
    (node,) = full.client.ask("GetNodes").nodes
    assert (node.name, node.state, node.seen_flows) == ("default/here", 1, 2)


def test_namespaces_are_those_of_the_last_hour(served: Served) -> None:
    now = time.time_ns()

    def between(one: str, other: str, age: int) -> Flow:
        ends = [Endpoint(namespace=name, cluster_name="default") for name in (one, other)]
        return Flow(time=now - age * SECOND, source=ends[0], destination=ends[1])

    served.ring.add(between("old", "shop", 4000), between("shop", "kube-system", 100), RESOLVED)
    asked = [served.client.ask("GetNamespaces").namespaces for _ in range(2)]
    assert [[(each.cluster, each.namespace) for each in found] for found in asked] == [
        [("default", "kube-system"), ("default", "shop")]
    ] * 2


def test_what_the_agent_does_is_told(served: Served) -> None:
    served.events.add(AgentEvent(AgentEventType.AGENT_STARTED, TimeNotification(START)))
    (answer,) = served.client.ask("GetAgentEvents", number=5)
    assert answer.agent_event.type == 2
    assert answer.agent_event.agent_start.time.ToNanoseconds() == START
    call = served.client.ask("GetAgentEvents", follow=True)
    call.initial_metadata()
    served.events.add(AgentEvent(AgentEventType.POLICY_UPDATED))
    assert next(call).agent_event.type == 3
    call.cancel()


def test_there_are_no_debug_events(served: Served) -> None:
    assert list(served.client.ask("GetDebugEvents")) == []


def test_peers_are_told_and_what_becomes_of_them(served: Served) -> None:
    changes = served.client.notify()
    first = next(changes)
    assert (first.name, first.address, first.type) == ("default/one", "192.0.2.1:4244", 1)
    assert not first.HasField("tls")
    served.peers.replace([PeerNode("default/two", "192.0.2.2:4244", "two.default.hubble-grpc.cilium.io")])
    found = {(each.name, each.type, each.tls.server_name) for each in (next(changes), next(changes))}
    assert found == {
        ("default/one", 2, ""),
        ("default/two", 1, "two.default.hubble-grpc.cilium.io"),
    }


def test_a_unix_socket_is_for_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "run" / "hubble.sock"
    options = ServerOptions(listen=(f"unix://{path}", ANY))
    with HubbleServer(FlowRing(), options) as server, HubbleClient(f"unix:{path}") as client:
        assert server.addresses[0] == f"unix://{path}"
        assert path.stat().st_mode & 0o777 == 0o660
        assert client.ask("ServerStatus").max_flows == 4095


def test_an_address_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot listen there"):
            HubbleServer(FlowRing(), ServerOptions(listen=(address,)))


def test_a_socket_at_which_another_serves_is_left_to_it(tmp_path: Path) -> None:
    options = ServerOptions(listen=(f"unix://{tmp_path / 'hubble.sock'}",))
    with HubbleServer(FlowRing(), options), HubbleClient(f"unix:{tmp_path / 'hubble.sock'}") as client:
        with pytest.raises(ConfigError, match="somebody serves there already"):
            HubbleServer(FlowRing(), options)
        assert client.ask("ServerStatus").max_flows == 4095
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "hubble.sock"))
    with HubbleServer(FlowRing(), options), HubbleClient(f"unix:{tmp_path / 'hubble.sock'}") as client:
        assert client.ask("ServerStatus").max_flows == 4095


def test_all_addresses_are_served_without_a_host() -> None:
    with HubbleServer(FlowRing(), ServerOptions(listen=(":0",))) as server:
        (address,) = server.addresses
        with HubbleClient(f"127.0.0.1:{address.rpartition(':')[2]}") as client:
            assert client.ask("ServerStatus").max_flows == 4095


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:65536", "127.0.0.1:", ""])
def test_an_address_that_cannot_be_is_said(address: str) -> None:
    with pytest.raises(ConfigError, match="an address is HOST:PORT"):
        HubbleServer(FlowRing(), ServerOptions(listen=(address,)))


@pytest.mark.parametrize(
    "data", [b"\xff" * 50, b"\x2a\xff\xff\xff\xff\x0f", b"\x32" * 1000, b"\x08" + b"\x80" * 20]
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(full: Served, data: bytes) -> None:
    for method in ("GetFlows", "GetAgentEvents", "GetDebugEvents"):
        make = full.client.channel.unary_stream(f"/observer.Observer/{method}")
        assert status(make(data, timeout=10))[0] == "INTERNAL"
    status_of = full.client.channel.unary_unary("/observer.Observer/ServerStatus")
    assert status(lambda: status_of(data, timeout=10))[0] == "INTERNAL"
    assert full.client.ask("ServerStatus").num_flows == 2


def test_a_method_that_there_is_not_is_unimplemented(full: Served) -> None:
    call = full.client.channel.unary_unary("/observer.Observer/GetAll")
    assert status(lambda: call(b"", timeout=10))[0] == "UNIMPLEMENTED"


def test_times_out_of_all_bounds_are_only_times(full: Served) -> None:
    for seconds in (-(2**62), 2**62):
        for field in ("since", "until"):
            flows = full.client.flows(**{field: {"seconds": seconds, "nanos": -5}})
            assert len(flows) in (0, 2)


def test_another_copy_of_the_schema_may_be_in_the_process() -> None:
    program = """
from google.protobuf import descriptor_pb2, descriptor_pool
other = descriptor_pb2.FileDescriptorProto(name="flow/flow.proto", package="flow", syntax="proto3")
other.message_type.add(name="Flow").field.add(name="time", number=1, type=9, label=1)
descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
from k8sdatapath.hubble.wire import message
assert message("flow.Flow").DESCRIPTOR.fields_by_name["time"].message_type.name == "Timestamp"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
