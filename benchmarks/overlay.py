"""A transfer between pods of two nodes: our tunnel against the kernel's own VXLAN."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from itertools import product
from typing import Any

from benchmarks import harness
from benchmarks.harness import CPU, Figure, median, ratios, rounds_of
from k8sdatapath import Lab
from k8sdatapath.lab.lab import LabNode, Pod
from k8sdatapath.node import Capacity

BENCH = "overlay"
ROUNDS = 60
PORT = 5201
BYTES = 256 << 20  # short slices, close together: what slows the machine down slows both
SMALL = Capacity(services=1024, backends=4096, slots=65536, flows=65536, pods=64)

#: How the client dials: the pod's address leads into our tunnel, its second one into the kernel's.
PATHS = {"kernel": "10.245.2.2", "ours": "10.244.2.2"}
TITLES = {"kernel": "a VXLAN device with a fixed remote", "ours": "k8sdatapath's tunnel"}

#: Where the client runs; the server is on the first of them.
CPUS = {"one CPU": CPU, "two CPUs": min(os.sched_getaffinity(0))}
FIGURES = {
    "one CPU": "throughput_ours_over_kernel_vxlan",
    "two CPUs": "throughput_ours_over_kernel_vxlan_two_cpus",
}

_SERVE = f"""
import os, socket, time
os.sched_setaffinity(0, {{{CPU}}})
listener = socket.create_server(("", {PORT}))
buffer = bytearray(1 << 20)
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    got, started = client.recv_into(buffer), time.perf_counter()
    while read := client.recv_into(buffer):
        got += read
    print(got / (time.perf_counter() - started), flush=True)
"""
_SEND = f"""
import os, socket, sys
piece = bytes(1 << 18)
for line in sys.stdin:
    address, cpu = line.split()
    os.sched_setaffinity(0, {{int(cpu)}})
    with socket.create_connection((address, {PORT})) as server:
        for _ in range({BYTES} // len(piece)):
            server.sendall(piece)
"""


def main() -> None:
    print(f"{BENCH}: {BYTES >> 20} MiB from pod to pod, {ROUNDS} rounds, medians\n")
    with Lab.start(nodes=2, routing="vxlan", capacity=SMALL, socket_lb=False) as lab:
        client, server = (lab.pod(f"pod{node.number}", node) for node in lab.nodes)
        for pod, other in (client, server), (server, client):
            by_kernel(pod, other.node)
        rates = measure(client, server)
    shares = {cpus: ratios(rates["ours", cpus], rates["kernel", cpus]) for cpus in CPUS}
    harness.table(
        ["", "client and server on", "Gbit/s", "lowest", "highest", "of the kernel's"],
        [
            (
                TITLES[path],
                cpus,
                *(f(rates[path, cpus]) * 8e-9 for f in (median, min, max)),
                median(shares[cpus]) if path == "ours" else "",
            )
            for cpus, path in product(CPUS, PATHS)
        ],
    )
    figures = {}
    for cpus, name in FIGURES.items():
        ours, kernel = (median(rates[path, cpus]) * 8e-9 for path in ("ours", "kernel"))
        figures[name] = Figure(
            shares[cpus],
            "ratio of bytes per second",
            f"{ours:.1f} Gbit/s",
            f"kernel's VXLAN {kernel:.1f} Gbit/s",
            at_least=0.9,
        )
    harness.report(BENCH, ROUNDS, figures)


def by_kernel(pod: Pod, other: LabNode) -> None:
    """Another address of the pod, which the other node reaches through a device of the kernel alone."""
    node, own = pod.node, f"10.245.{pod.node.number}.2"
    mac = "0e:00:00:00:00:0"
    pod.exec(["ip", "address", "add", f"{own}/32", "dev", "eth0"], check=True)
    pod.exec(
        ["ip", "route", "add", "10.245.0.0/16", "via", "169.254.1.1", "dev", "eth0", "onlink", "src", own],
        check=True,
    )
    commands = (
        f"link add kernel0 address {mac}{node.number} mtu 1450 type vxlan id 7 dstport 4789 "
        f"local {node.address} remote {other.address} dev eth0 nolearning",
        "link set kernel0 up",
        f"route add {own}/32 dev {pod.device}",
        f"neigh add {own} lladdr {pod.mac} dev {pod.device} nud permanent",
        f"route add 10.245.{other.number}.0/24 via 10.245.{other.number}.1 dev kernel0 onlink",
        f"neigh add 10.245.{other.number}.1 lladdr {mac}{other.number} dev kernel0 nud permanent",
    )
    node.exec(["ip", "-batch", "-"], input="\n".join(commands), check=True)


def measure(client: Pod, server: Pod) -> dict[tuple[str, str], list[float]]:
    """Bytes per second as the server sees them, of all in turn, by path and CPUs."""
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    ways = tuple(product(PATHS, CPUS))
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        server.popen([sys.executable, "-c", _SERVE], **pipe) as serving,
        client.popen([sys.executable, "-uc", _SEND], **pipe) as sending,
    ):
        assert serving.stdout is not None
        assert sending.stdin is not None
        try:
            serving.stdout.readline()
            for number, (path, cpus) in rounds_of(ways, ROUNDS + 1):
                sending.stdin.write(f"{PATHS[path]} {CPUS[cpus]}\n")
                sending.stdin.flush()
                rate = float(serving.stdout.readline())
                if number:  # the first warms up
                    rates[path, cpus].append(rate)
        finally:
            serving.kill()
            sending.kill()
    return dict(rates)


if __name__ == "__main__":
    main()
