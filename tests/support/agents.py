"""Agents as processes, on nodes of namespaces, routes and veths."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from k8sdatapath.net.cgroup import Cgroup
from k8sdatapath.net.netns import NetNs
from k8sdatapath.pins import PinDir
from tests.support.api_double import ApiDouble
from tests.support.cni import config, environment
from tests.support.wires import Wires

AGENT = [sys.executable, "-m", "k8sdatapath.cli", "agent"]
SMALL = {"services": 256, "backends": 1024, "slots": 4096, "flows": 4096, "pods": 64}


class NodeUnderTest:
    """A node with an uplink, a host outside, pods on plain veths, and an agent that can be killed.

    Everything the agent may touch has the node's name in it.
    """

    def __init__(
        self, source: Sequence[str], *, number: int = 1, outside: NetNs | None = None, **options: Any
    ) -> None:
        self._own = ExitStack()
        self.wires = self._own.enter_context(Wires())
        self.name = f"node-{number}"
        self.number = number
        self.pins = PinDir(f"/sys/fs/bpf/{self.wires.name}")
        self._own.callback(self.pins.remove)
        self.cgroup = Cgroup.create(self.wires.name)
        self._own.callback(self.cgroup.remove)
        self._own.callback(self.cgroup.kill)
        self.outside = outside or self.wires.namespace("out", router=True)
        self._net = 2 if outside is None else number + 1
        self.addresses = f"192.0.{self._net}.11", f"2001:db8:{self._net}::11"
        self.make_uplink()
        directory = self._own.enter_context(tempfile.TemporaryDirectory(prefix=self.wires.name))
        self.config = Path(directory) / "agent.yaml"
        self.config.write_text(json.dumps({"capacity": SMALL, **options}))
        self.arguments = [
            f"--config={self.config}",
            f"--node-name={self.name}",
            f"--netns={self.wires.node.name}",
            "--uplink=eth0",
            "--pod-device-pattern=v*",
            f"--cgroup={self.cgroup.path}",
            f"--bpffs={self.pins}",
            "--listen=127.0.0.1:0",
            *source,
        ]
        self.process: subprocess.Popen[str] | None = None
        self.log: list[dict[str, Any]] = []

    def make_uplink(self) -> None:
        """``eth0``, to the host outside."""
        self.wires.uplink(
            "eth0",
            self.outside,
            *map("{}/{}".format, self.addresses, (24, 64)),
            out=(f"192.0.{self._net}.101/24", f"2001:db8:{self._net}::101/64"),
            end="eth0" if self._net == 2 else f"eth{self.number}",
        )

    def pod(self, name: str, last: int) -> NetNs:
        """A pod on a plain routed veth; it answers HTTP at port 8080 with its name."""
        pod = self.wires.namespace(name)
        addresses = f"10.1.{self.number}.{last}/32", f"fd00:1:{self.number}::{last}/128"
        self.wires.routed(f"v{name}", pod, *addresses, mac=f"02:00:00:00:{self.number:02x}:{last:02x}")
        self._own.enter_context(closing(Server(pod, name)))
        return pod

    def start(self, *more: str, wrapper: Sequence[str] = ()) -> None:
        """Start the agent and wait until it is ready."""
        self.launch(*more, wrapper=wrapper)
        self.until(lambda: self.probe("readyz")[0] == 200)

    def launch(self, *more: str, wrapper: Sequence[str] = ()) -> None:
        """Start the agent."""
        self.process = subprocess.Popen(
            [*wrapper, *AGENT, *self.arguments, *more],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.log = []
        self._reader = threading.Thread(target=self._read, args=(self.process, self.log), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str], log: list[dict[str, Any]]) -> None:
        assert process.stderr is not None
        with process.stderr:
            log.extend(map(_line, process.stderr))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the agent by a signal; returns its exit code."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        code = process.wait(60)
        self._reader.join(10)  # what it said as it ended counts
        return code

    def tell_again(self, **options: object) -> None:
        """Have it read its file again, with other words in it."""
        self.config.write_text(json.dumps({**json.loads(self.config.read_text()), **options}))
        assert self.process is not None
        seen = self.messages().count("configuration read again")
        self.process.send_signal(signal.SIGHUP)
        self.until(lambda: self.messages().count("configuration read again") > seen)

    def cleanup(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*AGENT, *self.arguments, *more, "--cleanup"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def cpu(self) -> float:
        """Seconds of CPU that the agent has used."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def messages(self) -> list[str]:
        return [str(line["message"]) for line in self.log]

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something, while the agent lives."""
        deadline = time.monotonic() + 60
        while not condition():
            if self.process is not None and self.process.poll() is not None:
                self._reader.join(10)  # what it said as it ended counts
                assert condition(), self.messages()
                return
            assert time.monotonic() < deadline, self.messages()
            time.sleep(0.02)

    def probe(self, what: str) -> tuple[int, str]:
        """Ask the agent over HTTP, from within its network namespace; 0 if it does not listen yet."""
        where = next((str(line["address"]) for line in self.log if line["message"] == "listening"), "")
        if not where:
            return 0, ""
        return self.ask_http(self.wires.node, "127.0.0.1", int(where.rpartition(":")[2]), what)

    def ask_http(self, client: NetNs, address: str, port: int, what: str = "") -> tuple[int, str]:
        """What is answered to a client over HTTP, with its status."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = client.call(socket.create_connection, (address, port), 10)
        with connection.sock:
            connection.request("GET", f"/{what}")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def close(self) -> None:
        if self.process is not None:
            self.stop(signal.SIGKILL)
        self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def following(tmp_path: Path, **options: Any) -> Iterator[tuple[NodeUnderTest, ApiDouble]]:
    """A node whose agent follows an API server."""
    with (
        NodeUnderTest([f"--kubeconfig={tmp_path / 'config'}"], **options) as node,
        node.wires.node.call(ApiDouble) as api,
    ):
        write_kubeconfig(tmp_path / "config", api.url)
        yield node, api


@contextmanager
def two_nodes(
    *source: str, tunnel: bool = False, **options: Any
) -> Iterator[tuple[NodeUnderTest, NodeUnderTest]]:
    """Two nodes with one host outside, and with a tunnel for their pods if there shall be one."""
    with ExitStack() as stack:
        nodes: list[NodeUnderTest] = []
        for number in (1, 2):
            if tunnel:
                ends = [f"10.1.{number}.1", f"fd00:1:{number}::1"]
                options.update(routingMode="tunnel", tunnelAddresses=ends)
            outside = nodes[0].outside if nodes else None
            made = NodeUnderTest(source, number=number, outside=outside, **options)
            nodes.append(stack.enter_context(made))
        one, two = nodes
        yield one, two


def _line(text: str) -> dict[str, Any]:
    return json.loads(text) if text.startswith("{") else {"message": text}


class Server:
    """Says its name to whoever connects to its port, of both families."""

    def __init__(self, netns: NetNs, name: str, *, port: int = 8080) -> None:
        self._socket = netns.call(
            socket.create_server, ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
        self._name = name.encode()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client, suppress(OSError):  # who has gone is not told
                client.sendall(self._name)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def ask(client: NetNs, address: str, port: int = 80, *, timeout: float = 5) -> str:
    """Who answers a client that dials an address."""

    def connect() -> str:
        with socket.create_connection((address, port), timeout=timeout) as connection:
            return connection.recv(100).decode()

    return client.call(connect)


def answers(client: NetNs, address: str, port: int) -> bool:
    """Whether somebody answers a client that dials an address, to the first packet."""
    try:
        return bool(ask(client, address, port, timeout=0.9))
    except OSError:
        return False


def seen_by(server: NetNs, client: NetNs, address: str) -> str:
    """As whom a server sees a client that dials it at an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with server.call(socket.create_server, (address, 0), family=family) as listener:
        listener.settimeout(5)
        with client.call(socket.create_connection, listener.getsockname()[:2], 5):
            connection, peer = listener.accept()
            connection.close()
            return str(peer[0])


class Callers:
    """Short connections one after the other, until the ``with`` is left."""

    def __init__(self, client: NetNs, address: str, port: int = 80, *, pause: float = 0.0) -> None:
        self.made = 0
        self.failures: list[str] = []
        self._where = address, port
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=client.call, args=(self._run,), daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                with socket.create_connection(self._where, timeout=5) as connection:
                    assert connection.recv(100)
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
            self.made += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def in_cgroup(node: NodeUnderTest) -> Iterator[Callable[[str], str]]:
    """A process of the node whose sockets are balanced: dials an address, says who answered."""
    code = """
import socket, sys
for line in sys.stdin:
    with socket.create_connection((line.strip(), 80), timeout=5) as connection:
        print(connection.recv(99).decode(), flush=True)
"""
    shell = ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', f"{node.cgroup.path}/cgroup.procs"]
    pipe = subprocess.PIPE
    process = node.wires.node.call(
        lambda: subprocess.Popen([*shell, sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)
    )

    def dial(address: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{address}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    with process:
        yield dial
        process.kill()


def service(name: str, address: str, six: str, *, node_port: int = 0, **spec: Any) -> dict[str, Any]:
    """A Service at port 80 whose pods listen at 8080."""
    port = {"port": 80, "targetPort": 8080, **({"nodePort": node_port} if node_port else {})}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "type": "NodePort" if node_port else "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address, six],
            "ports": [port],
            **spec,
        },
    }


def slices(name: str, endpoints: Sequence[tuple[int, int]], *, node: str = "node-1") -> list[dict[str, Any]]:
    """The slices of a Service, whose endpoints are pods as (number of node, number of pod)."""
    made = []
    for family, form in (("IPv4", "10.1.{}.{}"), ("IPv6", "fd00:1:{}::{}")):
        made.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "namespace": "shop",
                    "name": f"{name}-{family.lower()}",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family,
                "ports": [{"port": 8080}],
                "endpoints": [
                    {"addresses": [form.format(*each)], "conditions": {"ready": True}, "nodeName": node}
                    for each in endpoints
                ],
            }
        )
    return made


WEB = service("web", "10.96.0.10", "fd00:96::10", node_port=30080)


def kube_node(node: NodeUnderTest, addresses: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name},
        "spec": {"podCIDRs": [f"10.1.{node.number}.0/24", f"fd00:1:{node.number}::/64"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": each} for each in addresses or node.addresses]
        },
    }


def write(directory: Path, name: str, objects: Sequence[dict[str, Any]]) -> None:
    """Manifests into a file, at once."""
    fresh = directory / f".{name}"
    fresh.write_text("\n---\n".join(map(json.dumps, objects)))
    os.replace(fresh, directory / f"{name}.yaml")


def write_kubeconfig(path: Path, url: str) -> None:
    """A kubeconfig for a double."""
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "double",
                "clusters": [{"name": "double", "cluster": {"server": url}}],
                "contexts": [{"name": "double", "context": {"cluster": "double", "user": "double"}}],
                "users": [{"name": "double", "user": {"token": "secret"}}],
            }
        )
    )


def plugin(node: NodeUnderTest, socket_path: Path, name: str, last: int) -> None:
    """Tell of a pod, as the runtime's plugins do."""
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": f"v{name}", "mac": "ee:ee:ee:ee:ee:ee"},
            {"name": "eth0", "mac": f"02:00:00:00:01:{last:02x}", "sandbox": f"/run/netns/{name}"},
        ],
        "ips": [
            {"address": f"10.1.1.{last}/32", "interface": 1},
            {"address": f"fd00:1:1::{last}/128", "interface": 1},
        ],
    }
    told = config(socket=str(socket_path), prevResult=result)
    done = subprocess.run(
        [sys.executable, "-m", "k8sdatapath.cni"],
        input=json.dumps(told),
        env={**os.environ, **environment("ADD", container=name)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
