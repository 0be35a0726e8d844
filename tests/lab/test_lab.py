"""A lab as its user sees it: hosts that talk, and the machine around it left alone."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from k8sdatapath.errors import ClosedError, KernelError, LabError, ModelError
from k8sdatapath.lab import Host, Lab, Pod
from tests.lab.remains import remains

pytestmark = pytest.mark.lab

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(datapath=False) as started:
        client, server = started.pod("client"), started.pod("server")
        outside = started.external("outside")
        for host in (client, server, outside, started.node):
            host.serve_http(8080, host.name)
            host.serve_udp(5353, host.name)
            host.serve_udp(7)
        yield started


@pytest.fixture
def client(lab: Lab) -> Pod:
    return lab.node.pods[0]


@pytest.fixture
def server(lab: Lab) -> Pod:
    return lab.node.pods[1]


def pick(host: Host, family: int) -> str:
    return str(host.address if family == 4 else host.address6)


def url(host: Host, family: int, port: int = 8080) -> str:
    address = pick(host, family)
    return f"http://{address}:{port}/" if family == 4 else f"http://[{address}]:{port}/"


def where_am_i() -> str:
    return os.readlink("/proc/thread-self/ns/net")


@FAMILIES
@pytest.mark.parametrize("source", ["client", "outside", "node1"])
@pytest.mark.parametrize("target", ["server", "outside", "node1"])
def test_every_host_reaches_every_other(lab: Lab, source: str, target: str, family: int) -> None:
    hosts = {host.name: host for host in (*lab.node.pods, lab.node, *lab.externals)}
    response = hosts[source].get(url(hosts[target], family))
    assert (response.status, response.text) == (200, target)
    assert response.peer == (pick(hosts[target], family), 8080)
    assert hosts[source].udp(pick(hosts[target], family), 5353, "?").data == target.encode()


@FAMILIES
def test_the_server_sees_the_clients_address(client: Pod, server: Pod, family: int) -> None:
    with client.tcp(pick(server, family), 8080) as sock:
        mine = sock.getsockname()
    peer = client.get(url(server, family)).headers["x-peer"]
    assert peer.rpartition(":")[0].strip("[]") == mine[0] == pick(client, family)


@FAMILIES
@pytest.mark.parametrize("connected", [False, True])
def test_udp_echo(client: Pod, server: Pod, family: int, connected: bool) -> None:
    answer = client.udp(pick(server, family), 7, b"hello", connected=connected)
    assert (answer.data, answer.source) == (b"hello", (pick(server, family), 7))


@FAMILIES
def test_a_connection_is_kept_alive(client: Pod, server: Pod, family: int) -> None:
    connection = http.client.HTTPConnection("pod")
    connection.sock = client.tcp(pick(server, family), 8080)
    for _ in range(3):
        connection.request("POST", "/", body=b"x" * 100_000)
        assert connection.getresponse().read() == b"server"
    connection.close()


def test_requests_may_be_pipelined_and_old(client: Pod, server: Pod) -> None:
    with client.tcp(server.address, 8080) as sock, sock.makefile("rb") as answers:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000 + b"GET / HTTP/1.0\r\n\r\n")
        assert answers.read().count(b"HTTP/1.1 200 OK") == 2001


def test_nonsense_ends_the_connection_and_not_the_server(client: Pod, server: Pod) -> None:
    with client.tcp(server.address, 8080) as sock:
        sock.sendall(b"hello\r\nworld\r\n\r\n")
        assert sock.recv(1) == b""
    assert client.get(url(server, 4)).status == 200


def test_a_large_answer_arrives_whole(lab: Lab, client: Pod) -> None:
    body = os.urandom(3_000_000).hex()
    lab.node.pods[1].serve_http(8081, body)
    assert client.get(url(lab.node.pods[1], 4, 8081)).text == body


def test_a_port_that_is_taken(server: Pod) -> None:
    with pytest.raises(KernelError, match="server 8080") as caught:
        server.serve_http(8080, "again")
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("port", [70000, 65536, 0, -1, "80", 80.0, True, None])
def test_what_is_not_a_port(client: Pod, server: Pod, port: Any) -> None:
    for use in (
        server.serve_http,
        server.serve_udp,
        lambda port: client.tcp(server.address, port),
        lambda port: client.udp(server.address, port),
        lambda port: client.udp(server.address, port, connected=True),
    ):
        with pytest.raises(ModelError, match="not a port"):
            use(port)
    assert client.get(url(server, 4)).text == "server"


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "http", "port": 70000, "body": ""},
        {"do": "http", "port": "80", "body": ""},
        {"do": "http", "port": 80, "body": "\u20ac" * 10_000},
        {"do": "udp", "port": 80},
        {"do": "socket", "family": 2, "type": -1, "proto": 1 << 40},
        {"do": "nothing"},
        {"do": 1},
    ],
    ids=str,
)
def test_an_agent_survives_any_request(client: Pod, server: Pod, request_: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="server could not"):
        server._agent.request(**request_)
    assert client.get(url(server, 4)).text == "server"
    with server.socket() as sock:
        assert sock.fileno() >= 0


def test_a_port_where_nobody_is(client: Pod, server: Pod) -> None:
    with pytest.raises(ConnectionRefusedError):
        client.get(url(server, 4, 9))
    with pytest.raises(ConnectionRefusedError):
        client.udp(server.address, 9, b"?", connected=True)


def test_an_address_that_nobody_has_is_unreachable_at_once(client: Pod) -> None:
    start = time.monotonic()
    with pytest.raises(OSError, match="unreachable"):
        client.get("http://10.96.0.10")
    with pytest.raises(OSError, match="unreachable"):
        client.get("http://[fd00:10:96::10]")
    assert time.monotonic() - start < 3


def test_what_is_not_a_url(client: Pod) -> None:
    for wrong in ("10.96.0.10", "https://10.96.0.10", "http:///x", "http://10.96.0.10:70000", "http://[::1"):
        with pytest.raises(ModelError, match="not a URL"):
            client.get(wrong)


def test_what_is_not_an_address(client: Pod) -> None:
    """Names are not looked up: a lab has none, and the caller's are of another network."""
    for wrong in ("localhost", "10.96.0", "", 1.5):
        with pytest.raises(ModelError, match="not an IP address"):
            client.tcp(wrong, 80)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="not an IP address"):
            client.udp(wrong, 80)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="not an IP address"):
        client.get("http://localhost/")


def test_many_threads_share_a_pod(client: Pod, server: Pod) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: client.get(url(server, 6)).text, range(200))
        assert Counter(answers) == {"server": 200}


def test_a_socket_is_of_the_pods_namespace_and_cgroup(client: Pod) -> None:
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        seen = client.exec(["ss", "-Htln", "--cgroup", f"sport = :{port}"], check=True).stdout
        assert f"cgroup:/{client.cgroup.path.parts[-3]}/node1/client" in seen
        assert not sock.get_inheritable()


def test_exec_runs_in_the_pod(client: Pod) -> None:
    assert client.exec(["readlink", "/proc/self/ns/net"]).stdout.strip() == client.netns.call(where_am_i)
    groups = client.exec(["cat", "/proc/self/cgroup"]).stdout
    assert groups.rstrip().endswith("/node1/client")


def test_exec_gives_output_input_and_status(client: Pod) -> None:
    done = client.exec(["sh", "-c", "cat; echo no >&2; exit 3"], input="hello")
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello", "no\n")
    with pytest.raises(subprocess.CalledProcessError):
        client.exec(["false"], check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        client.exec(["sleep", "60"], timeout=0.05)


def test_popen_is_a_child_of_the_caller(client: Pod) -> None:
    with client.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate("hello")[0] == "hello"
    assert process.returncode == 0


def test_a_program_that_is_not_there(client: Pod) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        client.exec(["no-such-program"])


def test_what_is_not_a_command(client: Pod) -> None:
    wrong: Any
    for wrong in ([], "", "ls -l", ["ls", 1], None):
        with pytest.raises(ModelError, match="not a command"):
            client.exec(wrong)
        with pytest.raises(ModelError, match="not a command"):
            client.popen(wrong)


def test_other_tools_know_a_pod_by_its_name(lab: Lab, client: Pod) -> None:
    shown = subprocess.run(
        ["ip", "-n", f"kdlab.{lab.name}.client", "-br", "address", "show", "eth0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"{client.address}/32" in shown
    assert f"{client.address6}/128" in shown
    assert "tentative" not in shown


def test_the_device_and_mac_of_a_pod(lab: Lab, client: Pod) -> None:
    ours = lab.node.exec(["ip", "neighbour", "show", str(client.address), "dev", client.device]).stdout
    assert client.mac in ours
    mine = client.exec(["ip", "link", "show", "eth0"]).stdout
    assert client.mac in mine


def test_a_pod_is_a_backend(client: Pod) -> None:
    assert str(client.at(80).address) == str(client.address)
    assert str(client.at(80, family=6).address) == str(client.address6)


def test_names_are_checked(lab: Lab) -> None:
    for wrong in ("", "Client", "a.b", "a/b", "-a", "a" * 41):
        with pytest.raises(ModelError, match="not a name"):
            lab.pod(wrong)
        with pytest.raises(ModelError, match="not a name"):
            lab.external(wrong)
        with pytest.raises(ModelError, match="not a name"):
            Lab.start(name=wrong)
    for number in (0, -1, 90):
        with pytest.raises(ModelError, match="1 to 89 nodes"):
            Lab.start(nodes=number)
    for taken in ("client", "node1", "outside", "switch"):
        with pytest.raises(LabError, match=f"has a host '{taken}' already"):
            lab.pod(taken)
        with pytest.raises(LabError, match=f"has a host '{taken}' already"):
            lab.external(taken)


def test_a_pod_that_cannot_be_is_not_begun(lab: Lab) -> None:
    cases: list[dict[str, Any]] = [
        {"labels": ["a"]},
        {"node": "node1"},
        {"namespace": "a/b"},
        {"ports": [80]},
    ]
    for wrong in cases:
        with pytest.raises(ModelError):
            lab.pod("late", **wrong)
    assert str(lab.pod("late")).startswith("<Pod late 10.244.1.")


def test_the_caller_and_the_machine_stay_as_they_are() -> None:
    def state() -> tuple[object, ...]:
        settings = ("ipv4/ip_forward", "ipv4/conf/all/rp_filter", "ipv6/conf/all/forwarding")
        values = [Path("/proc/sys/net", name).read_text() for name in settings]
        return where_am_i(), socket.if_nameindex(), values, Path("/proc/self/cgroup").read_text()

    before = state()
    threads = set(threading.enumerate())
    with Lab.start(datapath=False) as lab:
        pod = lab.pod("one")
        pod.serve_http(80)
        lab.node.get(url(pod, 4, 80))
        assert state() == before
        assert set(threading.enumerate()) <= threads


def test_a_lab_starts_inside_an_event_loop() -> None:
    """As in a notebook, whose cells run in one."""

    async def cell() -> str:
        with Lab.start(datapath=False) as lab:
            pod = lab.pod("one")
            pod.serve_http(80, "one")
            return lab.node.get(url(pod, 6, 80)).text

    assert asyncio.run(cell()) == "one"


def test_nothing_joins_the_lab_to_the_machine(lab: Lab) -> None:
    """Each device but loopback has its other end in another namespace of the lab."""
    for path in Path("/run/netns").glob(f"kdlab.{lab.name}.*"):
        links = subprocess.run(["ip", "-n", path.name, "link"], capture_output=True, text=True, check=True)
        assert links.stdout.count("@") == links.stdout.count(f" link-netns kdlab.{lab.name}.") > 0


def test_two_labs_side_by_side(lab: Lab, client: Pod, server: Pod) -> None:
    with Lab.start(datapath=False) as other:
        here, there = other.pod("client"), other.pod("server")
        there.serve_http(8080, "other")
        assert there.address == server.address
        assert here.get(url(there, 4)).text == "other"
        assert client.get(url(server, 4)).text == "server"
    assert client.get(url(server, 4)).text == "server"


def test_a_closed_lab_makes_no_more_pods() -> None:
    lab = Lab.start(datapath=False)
    lab.close()
    lab.close()
    assert remains(lab.name) == []
    with pytest.raises(ClosedError):
        lab.pod("late")


def test_a_closed_lab_does_nothing_and_says_that_it_is_closed() -> None:
    with Lab.start() as lab:
        pod, node, outside = lab.pod("pod"), lab.node, lab.external("outside")
    for host in (pod, node, outside):
        for use in (
            host.socket,
            lambda host=host: host.tcp(host.address, 80),
            lambda host=host: host.get(url(host, 6)),
            lambda host=host: host.udp(host.address, 80),
            lambda host=host: host.udp(host.address, 80, connected=True),
            lambda host=host: host.serve_http(80),
            lambda host=host: host.serve_udp(80),
            lambda host=host: host.exec(["true"]),
            lambda host=host: host.popen(["true"]),
        ):
            with pytest.raises(ClosedError, match=rf"{host.name}.* is closed"):
                use()
    with pytest.raises(ClosedError):
        _ = node.services.dump()


def test_pods_on_a_lab_without_datapath_have_no_services(lab: Lab) -> None:
    with pytest.raises(LabError, match="datapath=False"):
        _ = lab.node.services


def test_pods_of_several_nodes_reach_each_other() -> None:
    with Lab.start(nodes=3, datapath=False) as lab:
        one, two, three = (lab.pod(f"pod{node.number}", node) for node in lab.nodes)
        outside = lab.external("outside")
        for pod in (one, two, three):
            pod.serve_http(80, pod.name)
        for family in (4, 6):
            for source in (one, two, three, outside, *lab.nodes):
                for target in (one, two, three):
                    assert source.get(url(target, family, 80)).text == target.name
        hops = two.get(url(three, 4, 80)).headers["x-peer"]
        assert hops.startswith(str(two.address))


def test_an_interrupted_request_does_not_shift_the_answers(
    lab: Lab, client: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = client._agent

    def interrupted() -> tuple[bytes, list[int]]:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(agent, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with client.socket() as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
