"""Client, node and server as three network namespaces: the same for every variant of a benchmark.

Made with ip(8) alone, so that what is measured is the datapath and not a lab around it. Devices are
created inside the namespaces: the root namespace never sees them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks.harness import CPU, Helper

CLIENT = "10.244.0.2"
SERVERS = ("10.244.1.2", "10.244.1.3", "10.244.1.4")  # three backends, all answered by the server
PORT = 8080
POD_CIDR = "10.244.0.0/16"
NODE_IP = "10.244.0.1"
PREFIX = "kdbench"
MESSAGE = 64  # bytes of a request, and of its response

_MACS = {"client": "02:00:00:00:00:02", "node": "02:00:00:00:00:01", "server": "02:00:00:00:01:02"}
_SYSCTLS = {
    "client": ("net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_no_metrics_save=1"),
    "node": (
        "net.ipv4.ip_forward=1",
        # conntrack's table is one for all namespaces: finished connections of one variant must not fill it
        "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1",
    ),
    "server": ("net.core.somaxconn=4096",),
}


def run(*command: str, stdin: str | None = None) -> None:
    """Run a command; its own words are the error."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[:2000]}")


def inside(netns: str, *command: str) -> list[str]:
    """A command line that runs in a namespace, without ip(8)'s new mount of /sys."""
    return ["nsenter", f"--net=/run/netns/{netns}", *command]


@frozen
class Slice:
    """What a client measured in one slice of time; microseconds."""

    count: int
    seconds: float
    connect: tuple[float, float, float]  # p50, p90, p99
    whole: tuple[float, float, float]

    @property
    def per_second(self) -> float:
        return self.count / self.seconds


def sliced(
    asker: Helper, kind: str, address: str, port: int, count: int, *, spread: int = 1, size: int = MESSAGE
) -> Slice:
    """What a client (``rr client``) has measured, as it was asked to."""
    done, took, failed, *percentiles = asker.ask(kind, address, port, count, spread, size).split()
    if int(done) != count or int(failed):
        raise RuntimeError(f"{kind} to {address}:{port}: {failed} failed, {done} answered")
    us = [int(value) / 1000 for value in percentiles]
    return Slice(count, float(took), (us[0], us[1], us[2]), (us[3], us[4], us[5]))


class Wire:
    """One variant: a client that talks to a server through a node."""

    def __init__(self, name: str, program: Path) -> None:
        self.name = name
        self._program = str(program)
        self._helpers: list[Helper] = []
        base = f"{PREFIX}-{os.getpid()}-{name}"
        self.client, self.node, self.server = (f"{base}-{role}" for role in ("client", "node", "server"))

    @property
    def client_pid(self) -> int:
        return self._asker.pid

    @property
    def client_mac(self) -> str:
        return _MACS["client"]

    @property
    def node_mac(self) -> str:
        return _MACS["node"]

    @property
    def server_mac(self) -> str:
        return _MACS["server"]

    def up(self) -> None:
        """Make namespaces, devices and routes, start server and client."""
        for netns in (self.client, self.node, self.server):
            run("ip", "netns", "add", netns)
        for role, side, subnet in (("client", "c0", "10.244.0"), ("server", "s0", "10.244.1")):
            pod = getattr(self, role)
            own = [CLIENT] if role == "client" else list(SERVERS)
            run(
                "ip", "-n", self.node, "link", "add", side, "address", _MACS["node"], "type", "veth",
                "peer", "name", "eth0", "address", _MACS[role], "netns", pod,
            )  # fmt: skip
            gateway = f"{subnet}.1"
            _batch(
                self.node,
                f"link set {side} up",
                f"address add {gateway}/24 dev {side}",
                *(f"neigh replace {ip} lladdr {_MACS[role]} dev {side} nud permanent" for ip in own),
            )
            _batch(
                pod,
                "link set lo up",
                "link set eth0 up",
                *(f"address add {ip}/24 dev eth0" for ip in own),
                f"route add default via {gateway}",
                f"neigh replace {gateway} lladdr {_MACS['node']} dev eth0 nud permanent",
            )
        for role, settings in _SYSCTLS.items():
            run(*inside(getattr(self, role), "sysctl", "-qw", *settings))
        self._start(self.server, "serve", str(PORT), str(CPU)).answer()
        self._asker = self._start(self.client, "client", str(CPU))

    def slice(self, kind: str, address: str, port: int, count: int, *, spread: int = 1) -> Slice:
        """Let the client connect and ask (``crr``) or ask over one connection (``rr``), ``count`` times.

        Connections go to ``spread`` addresses from ``address`` on, by chance.
        """
        return sliced(self._asker, kind, address, port, count, spread=spread)

    def forget(self) -> None:
        """Drop the client's closed connections, so that no slice pays for those before it."""
        run(*inside(self.client, "ss", "-K", "state", "time-wait"))

    def down(self) -> None:
        """End the processes, remove the namespaces."""
        for helper in self._helpers:
            helper.close()
        for netns in (self.client, self.node, self.server):
            subprocess.run(["ip", "netns", "delete", netns], capture_output=True, check=False)

    def _start(self, netns: str, *arguments: str) -> Helper:
        self._helpers.append(Helper(*inside(netns, self._program, *arguments)))
        return self._helpers[-1]


@contextmanager
def wires(names: tuple[str, ...], program: Path) -> Iterator[dict[str, Wire]]:
    """One wire per name, all there at the same time; gone at the end, whatever happens."""
    sweep()
    made = {name: Wire(name, program) for name in names}
    try:
        for wire in made.values():
            wire.up()
        yield made
    finally:
        for wire in made.values():
            wire.down()


@contextmanager
def lone_node(name: str) -> Iterator[str]:
    """One namespace, for rules that no packet meets."""
    sweep()
    netns = f"{PREFIX}-{os.getpid()}-{name}"
    run("ip", "netns", "add", netns)
    try:
        yield netns
    finally:
        run("ip", "netns", "delete", netns)


def sweep() -> None:
    """Remove the namespaces of benchmarks that were killed."""
    for path in Path("/run/netns").glob(f"{PREFIX}-*"):
        owner = path.name.split("-")[1]
        if not Path("/proc", owner).exists():
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True, check=False)


def _batch(netns: str, *commands: str) -> None:
    run("ip", "-n", netns, "-batch", "-", stdin="\n".join(commands))
