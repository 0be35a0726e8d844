"""An agent killed and started again under traffic: what fails, and how soon the kernel follows again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, median, say
from benchmarks.topology import CLIENT, PORT, PREFIX, SERVERS, Wire, wires
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.model import Frontend
from k8sdatapath.pins import PinDir

BENCH = "restart"
ROUNDS = 7
SERVICES = 1000
RATE = 5000
BURST = 250
"""Connections at a time, so that a slice is a twentieth of a second."""
PATIENCE = 60.0


def main() -> None:
    print(f"{BENCH}: {ROUNDS} times kill -9, a change, start; {SERVICES:,} services\n")
    with (
        harness.compiled("rr") as program,
        wires(("agent",), program("rr")) as made,
        TemporaryDirectory(prefix=PREFIX) as directory,
    ):
        place = Place(made["agent"], Path(directory))
        try:
            seconds, traffic = measure(place)
        finally:
            place.pins.remove()
    rate = traffic.made / traffic.seconds
    say(f"{traffic.made:,} connections, {rate:,.0f} a second")
    harness.table(["", "s"], [("start to followed, median", median(seconds)), ("longest", max(seconds))])
    figures = {
        "failed_connections": Figure(
            (float(len(traffic.failures)),), "connections", f"of {traffic.made:,}", "none", at_most=0
        ),
        "converge_s": Figure(
            tuple(seconds), "s from start to all as wanted", f"{median(seconds):.2f} s", "none",
            at_most=3,
        ),
    }  # fmt: skip
    harness.report(BENCH, ROUNDS, figures)


class Place:
    """A node between the wire's client and server, and what an agent there is told."""

    def __init__(self, wire: Wire, directory: Path) -> None:
        self.wire = wire
        self.pins = PinDir(f"/sys/fs/bpf/{PREFIX}-{os.getpid()}")
        self._manifests = directory
        self.front = Frontend(kubeproxy.vip_of_last(SERVICES), kubeproxy.SERVICE_PORT)

    def want(self, servers: tuple[str, ...]) -> None:
        """Let the service that is dialled have these servers; all others are as they were."""
        items = [pod("client", [CLIENT]), pod("server", list(SERVERS))]
        for number, each in enumerate(kubeproxy.services(SERVICES, [(ip, PORT) for ip in SERVERS])):
            items += objects(each, servers if number == SERVICES - 1 else SERVERS)
        fresh = self._manifests / ".fresh"
        fresh.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        fresh.rename(self._manifests / "all.json")

    def start(self) -> subprocess.Popen[str]:
        """An agent."""
        command = [sys.executable, "-m", "k8sdatapath.cli", "agent", f"--source={self._manifests}"]
        where = [f"--netns={self.wire.node}", f"--bpffs={self.pins}", "--listen=none", "--node-name=node"]
        return subprocess.Popen([*command, *where], stderr=subprocess.PIPE, text=True)

    def wait(self, agent: subprocess.Popen[str], servers: tuple[str, ...]) -> None:
        """Until the kernel has what is wanted: the agent says so, and it is so."""
        assert agent.stderr is not None
        told = any('"message": "ready"' in line for line in iter(agent.stderr.readline, ""))
        if not told or not self._has(servers):
            raise RuntimeError("the agent did not program what is wanted")

    def _has(self, servers: tuple[str, ...]) -> bool:
        with ServiceTable.bind(self.pins) as table:
            return {str(each.address) for each in table.get(self.front).backends} == set(servers)


def measure(place: Place) -> tuple[list[float], Traffic]:
    """Kill, change, start, again and again: seconds from each start, and what the client met."""
    place.want(SERVERS)
    agent = place.start()
    seconds = []
    try:
        place.wait(agent, SERVERS)
        pods_attached(place)
        with traffic_through(place) as traffic:
            for number in range(ROUNDS):
                time.sleep(0.3)
                kill(agent)
                servers = SERVERS[: 1 + number % (len(SERVERS) - 1)]
                place.want(servers)
                time.sleep(0.3)
                began = time.perf_counter()
                agent = place.start()
                place.wait(agent, servers)
                seconds.append(time.perf_counter() - began)
    finally:
        kill(agent)
    return seconds, traffic


def kill(agent: subprocess.Popen[str]) -> None:
    with agent:
        agent.kill()


def pods_attached(place: Place) -> None:
    deadline = time.monotonic() + PATIENCE
    while not {"from_pod-c0", "from_pod-s0"} <= set(place.pins.links):
        if time.monotonic() > deadline:
            raise RuntimeError("the agent did not find the pods")
        time.sleep(0.01)


class Traffic:
    """What the client met."""

    def __init__(self) -> None:
        self.made = 0
        self.seconds = 0.0
        self.failures: list[str] = []
        self.over = threading.Event()

    def run(self, place: Place) -> None:
        began = time.perf_counter()
        while not self.over.is_set():
            try:
                place.wire.slice("crr", str(place.front.address), place.front.port, BURST)
            except RuntimeError as error:
                self.failures.append(str(error))
            self.made += BURST
            if not self.made % (40 * BURST):
                place.wire.forget()
            time.sleep(max(0.0, began + self.made / RATE - time.perf_counter()))
        self.seconds = time.perf_counter() - began


@contextmanager
def traffic_through(place: Place) -> Iterator[Traffic]:
    traffic = Traffic()
    thread = threading.Thread(target=traffic.run, args=(place,))
    thread.start()
    try:
        yield traffic
    finally:
        traffic.over.set()
        thread.join()


def pod(name: str, addresses: list[str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "bench", "name": name},
        "spec": {"nodeName": "node"},
        "status": {"podIPs": [{"ip": address} for address in addresses]},
    }


def objects(service: kubeproxy.Service, servers: tuple[str, ...]) -> list[dict[str, Any]]:
    """A Service and its slice."""
    namespace, _, name = service.name.replace(":", "-").rpartition("/")
    about = {"namespace": namespace or "bench", "name": name}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": about,
            "spec": {"clusterIP": str(service.vip), "ports": [{"port": kubeproxy.SERVICE_PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**about, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"port": PORT}],
            "endpoints": [{"addresses": [address]} for address in servers],
        },
    ]


if __name__ == "__main__":
    main()
