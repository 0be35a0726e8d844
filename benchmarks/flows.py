"""What telling of packets costs their connections, and how many events can be taken and read."""

from __future__ import annotations

import struct
import threading
import time
from collections import defaultdict
from contextlib import ExitStack

from benchmarks import harness, kubeproxy
from benchmarks.flow_server import follow_without_loss, grpc_flows_per_s
from benchmarks.harness import Figure, median, ratios, rounds_of
from benchmarks.ours import open_node
from benchmarks.topology import PORT, SERVERS, Slice, Wire, wires
from k8sdatapath.datapath.flow_columns import packed_columns
from k8sdatapath.datapath.flow_observer import FlowObserver
from k8sdatapath.net.packet import udp
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import TC
from k8sdatapath.tables.events import Level

BENCH = "flows"
ROUNDS = 15
REQUESTS = 4000
CONNECTS = 1200
WARM_UP = 200
LEVELS = {"off": None, "drops": Level.DROPS, "aggregated": Level.AGGREGATED, "all": Level.ALL}

RATE = 500_000
SECONDS = 2.0
PACE = 0.005  # seconds between portions of events
KEPT = 1 << 20
DECODES = 5


def main() -> None:
    print(f"{BENCH}: a ClusterIP, {ROUNDS} rounds, medians, microseconds; one processor\n")
    wanted = list(kubeproxy.services(100, [(ip, PORT) for ip in SERVERS]))
    with (
        harness.compiled("rr") as program,
        wires(tuple(LEVELS), program("rr")) as made,
        ExitStack() as nodes,
    ):
        for name, level in LEVELS.items():
            open_node(nodes, made[name], wanted, flows=level)
        requests, connects = (
            measure(made, kind, count) for kind, count in (("rr", REQUESTS), ("crr", CONNECTS))
        )
    harness.table(
        ["programs tell", "request p50", "requests/s", "connection p50", "connections/s"],
        [
            (name, *(value for slices in (requests[name], connects[name])
                     for value in (median(s.whole[0] for s in slices), median(s.per_second for s in slices))))
            for name in LEVELS
        ],
    )  # fmt: skip
    lost, decoded = take_and_read()
    harness.report(BENCH, ROUNDS, figures(requests, connects, lost, decoded))


def measure(made: dict[str, Wire], kind: str, count: int) -> dict[str, list[Slice]]:
    """Slices of all levels in turn."""
    found: dict[str, list[Slice]] = defaultdict(list)
    for name in LEVELS:
        dial(made[name], kind, WARM_UP)
    for _, name in rounds_of(tuple(LEVELS), ROUNDS):
        found[name].append(dial(made[name], kind, count))
        made[name].forget()
    return dict(found)


def dial(wire: Wire, kind: str, count: int) -> Slice:
    return wire.slice(kind, kubeproxy.vip_of_last(100), kubeproxy.SERVICE_PORT, count)


def take_and_read() -> tuple[list[float], list[float]]:
    """Of events at the rate, how many are lost; and how many a second become columns."""
    spec = ObjectSpec.from_file("pod").with_config(events=True).with_maps(kd_events=1 << 22)
    with spec.load() as loaded, FlowObserver.bind(loaded, capacity=KEPT) as observer:
        observer.watch(Level.ALL)
        program = loaded.program("from_pod", TC)
        frame = udp("10.244.1.2", "198.51.100.7", 4000, 53)
        lost = [flood(observer, program, frame) for _ in range(3)]
        start, end = observer.span()
        _, data = observer.packed(start, end)
    decoded = []
    for _ in range(DECODES):
        began = time.perf_counter()
        columns = packed_columns(data)
        whole = {name: columns[name].copy() for name in columns.dtype.names}
        decoded.append(len(whole["time"]) / (time.perf_counter() - began))
    return lost, decoded


def flood(observer: FlowObserver, program: TC, frame: bytes) -> float:
    """Tell so many events a second for a while; the share of a second's that were lost."""
    before, began = observer.telling, time.perf_counter()
    portion = int(RATE * PACE)
    context = struct.pack("=40xI148x", 1)
    done = threading.Event()

    def tell() -> None:
        for number in range(int(SECONDS / PACE)):
            program.run(frame, ctx=context, repeat=portion)
            time.sleep(max(0.0, began + (number + 1) * PACE - time.perf_counter()))
        done.set()

    teller = threading.Thread(target=tell)
    teller.start()
    done.wait()
    seconds = time.perf_counter() - began
    teller.join()
    observer.span()
    after = observer.telling
    told, full = after.told - before.told, after.full - before.full
    harness.say(f"{(told + full) / seconds:,.0f} events/s for {seconds:.1f} s: {full} lost")
    return full / seconds


def figures(
    requests: dict[str, list[Slice]],
    connects: dict[str, list[Slice]],
    lost: list[float],
    decoded: list[float],
) -> dict[str, Figure]:
    def over_off(slices: dict[str, list[Slice]], name: str, at_least: float) -> Figure:
        ours, off = ([part.whole[0] for part in slices[each]] for each in (name, "off"))
        return Figure(
            ratios(off, ours),
            "ratio of 1 / p50",
            f"{median(ours):.2f} us",
            f"programs that tell nothing {median(off):.2f} us",
            at_least=at_least,
        )

    return {
        "rps_aggregated_over_off": over_off(requests, "aggregated", 0.97),
        "rps_all_over_off": over_off(requests, "all", 0.85),
        "cps_aggregated_over_off": over_off(connects, "aggregated", 0.97),
        "decoded_per_s": Figure(
            tuple(decoded), "events/s", "into columns of numpy, copied", "", at_least=1_000_000
        ),
        "lost_at_500k_per_s": Figure(tuple(lost), "events/s", "taken by an observer", "", at_most=0),
        "grpc_flows_per_s": Figure(
            tuple(grpc_flows_per_s()), "flows/s", "to one client of HubbleServer, decoded", "", at_least=5000
        ),
        "grpc_lost_at_5k_per_s": Figure(
            (follow_without_loss(),), "flows", "by a follower, of a ring of 4,095", "", at_most=0
        ),
    }


if __name__ == "__main__":
    main()
