"""What one client takes from the flow server: a part of the benchmark ``flows``."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from attrs import evolve

from k8sdatapath.flow_source import FlowRing
from k8sdatapath.hubble import HubbleServer, ServerOptions
from k8sdatapath.model.flow import (
    IP,
    TCP,
    Endpoint,
    EventType,
    Flow,
    FlowType,
    IPVersion,
    MonitorEvent,
    ServiceRef,
    TCPFlags,
    Verdict,
)

__all__ = ["follow_without_loss", "grpc_flows_per_s"]

CLIENT = """
import sys, time, grpc
from k8sdatapath.hubble.wire import message
address, number, follow = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "follow"
Request, Response = (message(f"observer.GetFlows{each}") for each in ("Request", "Response"))
with grpc.insecure_channel(address) as channel:
    call = channel.unary_stream(
        "/observer.Observer/GetFlows",
        request_serializer=Request.SerializeToString,
        response_deserializer=Response.FromString,
    )
    started, count, lost = 0.0, 0, 0
    for answer in call(Request(follow=follow) if follow else Request(number=number)):
        started = started or time.perf_counter()
        lost += answer.lost_events.num_events_lost
        count += answer.HasField("flow")
        if count + lost >= number:
            break
    print(count / (time.perf_counter() - started), lost)
"""

SEEN = Flow(
    verdict=Verdict.FORWARDED,
    ip=IP("10.244.1.2", "10.244.2.3", IPVersion.IPv4),
    l4=TCP(40000, 8080, TCPFlags.SYN),
    source=Endpoint(identity=300, namespace="shop", labels=("k8s:app=web",), pod_name="web-5d4f-abcde"),
    destination=Endpoint(identity=301, namespace="shop", labels=("k8s:app=api",), pod_name="api-6b7c-fghij"),
    type=FlowType.L3_L4,
    node_name="default/node-1",
    event_type=EventType(MonitorEvent.TRACE, 0),
    destination_service=ServiceRef("api", "shop"),
    is_reply=False,
    summary="TCP Flags: SYN",
)
"""What a connection within a cluster is told as."""


def grpc_flows_per_s(*, flows: int = 20_000, rounds: int = 5) -> list[float]:
    """Flows a second that a client in another process receives and decodes, of each round."""
    ring = FlowRing(flows)
    ring.add(*(evolve(SEEN, time=number, uuid=f"{number:032x}") for number in range(flows)))
    with HubbleServer(ring, ServerOptions(listen=("127.0.0.1:0",))) as server:
        return [_taken(server.addresses[0], flows, "last")[0] for _ in range(rounds)]


def follow_without_loss(*, rate: int = 5000, seconds: float = 5.0) -> int:
    """How many flows a follower misses, of so many a second that come into a ring of Hubble's size."""
    ring, flows = FlowRing(4095), int(rate * seconds)
    with HubbleServer(ring, ServerOptions(listen=("127.0.0.1:0",))) as server:
        thread = threading.Thread(target=_feed, args=(ring, rate, flows))
        thread.start()
        try:
            return _taken(server.addresses[0], flows // 2, "follow")[1]
        finally:
            thread.join()


def _feed(ring: FlowRing, rate: int, flows: int) -> None:
    started = time.monotonic()
    for number in range(0, flows, 50):
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
        ring.add(
            *(evolve(SEEN, time=time.time_ns(), uuid=f"{each:032x}") for each in range(number, number + 50))
        )


def _taken(address: str, flows: int, how: str) -> tuple[float, int]:
    command = [sys.executable, "-c", CLIENT, address, str(flows), how]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    rate, lost = answer.split()
    return float(rate), int(lost)
