"""What telling of packets costs their connections, and how many events can be taken and read."""

from __future__ import annotations

import struct
import threading
import time
from itertools import chain

from benchmarks import flow_cost, harness
from benchmarks.flow_cost import Costs
from benchmarks.flow_server import follow_without_loss, grpc_flows_per_s
from benchmarks.harness import Figure, between, median, sure
from k8sdatapath.datapath.flow_columns import packed_columns
from k8sdatapath.datapath.flow_observer import FlowObserver
from k8sdatapath.net.packet import udp
from k8sdatapath.node.loading import event_rows
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.programs import TC
from k8sdatapath.pybpf import cpus
from k8sdatapath.tables.events import Level

BENCH = "flows"
RATE = 500_000
SECONDS = 2.0
PACE = 0.005  # seconds between portions of events
KEPT = 1 << 20
DECODES = 5


def main() -> None:
    print(f"{BENCH}: a ClusterIP, {flow_cost.SETUPS} set-ups, medians, microseconds; one processor\n")
    with harness.compiled("rr") as program:
        costs = flow_cost.measure(program("rr"))
    show(costs)
    lost, decoded = take_and_read()
    harness.report(BENCH, flow_cost.SETUPS * flow_cost.BLOCKS, figures(costs, lost, decoded))


def show(costs: Costs) -> None:
    """What each level costs; and the reader, who is on another processor."""
    harness.table(
        ["programs tell", "request p50", "requests/s", "connection p50", "connections/s"],
        [
            (name, *(f(kind, name) for kind in ("rr", "crr") for f in (costs.p50, costs.per_second)))
            for name in flow_cost.LEVELS
        ],
    )
    for kind, what in (("rr", "request"), ("crr", "connection")):
        for name in list(flow_cost.LEVELS)[1:]:
            added, rate = costs.added(kind, name), costs.rate_over_off(kind, name)
            harness.say(
                f"{name} adds {median(chain(*added)):.0f} ns to a {what} ({between(sure(added), 0)}); "
                f"{what}s/s over off {median(chain(*rate)):.4f} ({between(sure(rate))})"
            )
    events, cpu = (median(getattr(each, what) for each in costs.readings) for what in ("events", "cpu"))
    harness.say(
        f"a connection is {events:.2f} events; their reader takes {cpu:.2f} us of its own processor\n"
    )


def take_and_read() -> tuple[list[float], list[float]]:
    """Of events at the rate, how many are lost; and how many a second become columns."""
    spec = (
        ObjectSpec.from_file("pod")
        .with_config(events=True)
        .with_maps(kd_event_rows=event_rows(len(cpus.online())))
    )
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


def figures(costs: Costs, lost: list[float], decoded: list[float]) -> dict[str, Figure]:
    def over_off(kind: str, name: str, at_least: float) -> Figure:
        found = costs.over_off(kind, name)
        return Figure(
            tuple(chain(*found)),
            "ratio of 1 / p50",
            f"{costs.p50(kind, name):.2f} us",
            f"programs that tell nothing {costs.p50(kind, 'off'):.2f} us",
            at_least=at_least,
            sure=sure(found),
        )

    return {
        "rps_aggregated_over_off": over_off("rr", "aggregated", 0.97),
        "rps_all_over_off": over_off("rr", "all", 0.85),
        "cps_aggregated_over_off": over_off("crr", "aggregated", 0.97),
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
