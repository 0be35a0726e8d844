"""Which sockets of a node are paired, and that what they say is nowhere else."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import evolve

from k8sdatapath import Accelerated, Lab, Service, maps
from k8sdatapath.cli.flow_print import Shape
from k8sdatapath.errors import ModelError, StalePlanError
from k8sdatapath.hubble import HubbleServer, ServerOptions
from k8sdatapath.lab.lab import LabNode, Pod
from k8sdatapath.layout import u64
from k8sdatapath.model.flow import TCP, Flow, FlowEvent, FlowType, MonitorEvent, Verdict
from tests.support.acceleration import choose, pair, pod, since
from tests.support.connections import Connection, connected, dial, listen
from tests.support.hubble_client import HubbleClient, message
from tests.support.watching import wait

pytestmark = pytest.mark.lab

VIPS = {4: "10.96.0.10", 6: "fd00:10:96::10"}


FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@contextmanager
def sniffed(node: LabNode, *pods: Pod, into: Path) -> Iterator[None]:
    """All that the devices of pods carry meanwhile goes into a file."""
    # little of each packet: of whole ones the kernel keeps eight until tcpdump runs, and drops more
    command = ["tcpdump", "--immediate-mode", "-s256", "-Uni", "any", "-w", str(into), "tcp"]
    with node.popen(command, stderr=subprocess.PIPE, text=True) as sniffer:
        assert sniffer.stderr is not None
        while "listening" not in sniffer.stderr.readline():
            pass
        try:
            yield
        finally:
            sniffer.terminate()
            sniffer.communicate()


def told(node: LabNode) -> list[Flow]:
    """The flows of pairs."""
    return [each for each in node.flows.last(500) if isinstance(each, Flow) and each.accelerated]


def check_told(node: LabNode, made: Connection, service: bool, begun: int) -> None:
    """That a pair was made is a flow, by itself; of what is said there is none."""
    ends = TCP(made.client.getsockname()[1], made.server.getsockname()[1])
    (flow,) = (each for each in told(node) if each.l4 == ends and each.time > begun)
    assert (flow.type, flow.verdict, flow.is_reply) == (FlowType.SOCK, Verdict.FORWARDED, False)
    assert flow.source is not None
    assert flow.destination is not None
    assert (flow.source.pod_name, flow.destination.pod_name) == ("client", "web")
    assert (flow.destination_service is not None) == service
    assert Flow.from_json(flow.to_json()) == flow
    assert "to-endpoint FORWARDED (Accelerated)" in Shape().line(FlowEvent.of(flow))


@FAMILIES
@pytest.mark.parametrize("service", [False, True], ids=["direct", "service"])
def test_what_is_sent_is_not_on_the_wire(node: LabNode, tmp_path: Path, family: int, service: bool) -> None:
    client, web, secret = pod(node, "client"), pod(node, "web"), b"a-secret-nobody-hears"
    before, begun = node.accelerator.stats(), time.time_ns()
    with listen(web) as listener:
        port = listener.getsockname()[1]
        address, dialled = web.address if family == 4 else web.address6, port
        if service:
            node.services.upsert(Service(VIPS[family], 80, backends=[web.at(port, family)], name="shop/web"))
            address, dialled = VIPS[family], 80
        with sniffed(node, client, web, into=tmp_path / "wire"):
            made = dial(client, listener, address, dialled)
            with made:
                for _ in range(10):
                    made.say(secret)
                assert since(node, before) == {"pairs": 1, "handed": 20}
                seen = pair(node)
                assert str(seen.dialled.address) == str(address)
                assert (seen.client.messages, seen.server.messages) == (10, 10)
                assert (seen.client.bytes, seen.client.others) == (10 * len(secret), 0)
                assert seen.client.peer.port == made.client.getsockname()[1]
                assert (seen.server.peer.port, seen.dialled.port) == (port, dialled)
                assert seen.client.netns == client.netns.cookie
                assert seen.server.netns == web.netns.cookie
                check_told(node, made, service, begun)
            wait(lambda: not list(node.accelerator.pairs()))  # until the farewells of both ends have arrived
            choose(node)
            with dial(client, listener, address, dialled) as other:
                other.say(b"what-all-may-hear")
                assert not list(node.accelerator.pairs())
            wait(lambda: b"what-all-may-hear" in (tmp_path / "wire").read_bytes())
    assert secret not in (tmp_path / "wire").read_bytes()


@FAMILIES
def test_a_pair_is_seen_as_hubble_shows_it(node: LabNode, family: int) -> None:
    """As a flow of sockets, behind the service that the client has dialled."""
    client, web, begun = pod(node, "client"), pod(node, "web"), time.time_ns()
    with listen(web) as listener:
        port = listener.getsockname()[1]
        node.services.upsert(Service(VIPS[family], 80, backends=[web.at(port, family)], name="shop/web"))
        with dial(client, listener, VIPS[family], 80) as made:
            made.say(b"hello")
            pair(node)
            wait(lambda: any(each.time > begun for each in told(node)))
            with (
                HubbleServer(node.flows, ServerOptions(listen=("127.0.0.1:0",))) as server,
                HubbleClient(server.addresses[0]) as hubble,
            ):
                number = made.client.getsockname()[1]
                asked = message("flow.FlowFilter")(
                    source_port=[str(number)], event_type=[{"type": MonitorEvent.TRACE}]
                )
                flows = hubble.flows(number=100, whitelist=[asked])
    (flow,) = (each for each in flows if each.Summary == "Accelerated")
    assert flow.Type == FlowType.SOCK
    assert flow.verdict == Verdict.FORWARDED
    assert (flow.source.pod_name, flow.destination.pod_name) == ("client", "web")
    assert (flow.l4.TCP.source_port, flow.l4.TCP.destination_port) == (number, port)
    assert (flow.destination_service.namespace, flow.destination_service.name) == ("shop", "web")
    assert flow.time.ToNanoseconds() > begun


def test_others_go_through_the_stack(node: LabNode, lab: Lab) -> None:
    """Who was not chosen, and who is elsewhere."""
    client, web = pod(node, "client"), pod(node, "web")
    before = node.accelerator.stats()
    with connected(client, pod(lab.nodes[1], "far")) as made:
        made.say(b"far")
        assert not list(node.accelerator.pairs())
    choose(node, Accelerated(web.address, 1))
    with connected(client, web) as made:
        made.say(b"here")
        assert not list(node.accelerator.pairs())
    assert since(node, before) == {}


def test_what_is_chosen_is_a_plan(node: LabNode) -> None:
    accelerator = node.accelerator
    wanted = [Accelerated("10.96.0.10", 80), Accelerated("fd00::/8"), Accelerated("10.244.0.0/16")]
    accelerator.plan(wanted).apply()
    assert accelerator.accelerated == set(wanted)
    plan = accelerator.plan([*wanted[:2], Accelerated("::/0", 443)])
    assert str(plan) == "+ ::/0 port 443\n- 10.244.0.0/16"
    assert str(plan.apply()).startswith("1 added, 0 changed, 1 removed")
    with pytest.raises(StalePlanError):
        plan.apply()
    assert accelerator.plan(accelerator.accelerated).empty
    with pytest.raises(ModelError, match=r"'10\.96\.0\.10' is not an Accelerated"):
        accelerator.plan(["10.96.0.10"])
    with pytest.raises(ModelError, match="this is a single one"):
        accelerator.plan(wanted[0])
    web = Service("10.96.0.10", 80, backends=[])
    assert Accelerated.of(web, evolve(web, protocol="UDP")) == (Accelerated("10.96.0.10", 80),)


def test_all_of_ipv6_is_nothing_of_ipv4(node: LabNode) -> None:
    choose(node, Accelerated("::/0"))
    with connected(pod(node, "client"), pod(node, "web")) as made:
        made.say(b"v4")
        assert not list(node.accelerator.pairs())
    with connected(pod(node, "client"), pod(node, "web"), pod(node, "web").address6) as made:
        made.say(b"v6")
        assert pair(node).client.messages == 1


def test_sockets_in_other_namespaces_with_the_same_addresses_are_others(node: LabNode) -> None:
    """Loopback addresses are in every pod: the same ports at both ends, at the same time."""
    made = []
    for name in ("client", "web"):
        host = pod(node, name)
        with listen(host, 7000, address="127.0.0.1") as listener, host.socket() as near:
            near.bind(("127.0.0.1", 7001))
            near.connect(("127.0.0.1", 7000))
            far, _ = listener.accept()
            made.append(Connection(near.dup(), far))
    for number, each in enumerate(made):
        each.client.sendall(b"%d" % number)
    assert [each.server.recv(10) for each in made] == [b"0", b"1"]
    seen = {each.client.netns: each for each in node.accelerator.pairs()}
    assert seen.keys() == {pod(node, name).netns.cookie for name in ("client", "web")}
    assert all(each.client.messages == 1 for each in seen.values())
    for each in made:
        each.client.close()
        each.server.close()


FORGED = """
import socket, subprocess, sys
client, server, port, near = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for command in ("link set lo up", f"address add {client} dev lo", f"address add {server} dev lo"):
    subprocess.run(["ip", *command.split()], check=True)
listener = socket.create_server((server, port))
mine = socket.create_connection((server, port), source_address=(client, near))
theirs, _ = listener.accept()
print("ready", flush=True)
for line in sys.stdin.buffer:
    mine.sendall(b"forged " + line)
    print(theirs.recv(100).decode().strip(), flush=True)
"""


def test_who_takes_the_addresses_of_others_hears_nothing_of_them(node: LabNode) -> None:
    """A pod that makes a namespace of its own, with a connection that has all four numbers of another's."""
    client, web = pod(node, "client"), pod(node, "web")
    with listen(web) as listener:
        port = listener.getsockname()[1]
        made = dial(client, listener, web.address)
        near = made.client.getsockname()[1]
        command = ["unshare", "-n", sys.executable, "-c", FORGED]
        command += [str(client.address), str(web.address), str(port), str(near)]
        pipe = subprocess.PIPE
        with made, pod(node, "other").popen(command, stdin=pipe, stdout=pipe) as forger:
            assert forger.stdin is not None
            assert forger.stdout is not None
            assert forger.stdout.readline() == b"ready\n"
            for number in range(5):
                made.client.sendall(b"true %d" % number)
                forger.stdin.write(b"%d\n" % number)
                forger.stdin.flush()
                assert forger.stdout.readline() == b"forged %d\n" % number
                assert made.server.recv(100) == b"true %d" % number
            forger.stdin.close()
            forger.wait()


def test_many_connections_leave_nothing_behind(node: LabNode) -> None:
    client, web = pod(node, "client"), pod(node, "web")
    before = node.accelerator.stats()
    failures: list[BaseException] = []

    def churn(listener: socket.socket, count: int) -> None:
        try:
            for number in range(count):
                made = dial(client, listener, web.address)
                with made:
                    made.say(b"%d" % number * 20)
                    if number % 3 == 0:
                        made.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, AssertionError) as error:
            failures.append(error)

    listeners = [listen(web) for _ in range(4)]
    threads = [threading.Thread(target=churn, args=(each, 150)) for each in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in listeners:
        each.close()
    assert failures == []
    counted = since(node, before)
    assert counted["pairs"] == 600
    assert "refused" not in counted
    wait(lambda: node.accelerator.stats().open == 0)
    sockets = node.datapath._objects["accelerator"].map("kd_accel_socks", maps.SockHash[u64])
    wait(lambda: len(sockets) == 0)


ECHO = """
import socket, sys
inherited = socket.socket(fileno=int(sys.argv[1]))
while data := inherited.recv(100):
    inherited.sendall(data.upper())
"""


def test_processes_that_share_a_port_or_inherit_a_socket(node: LabNode) -> None:
    client, web = pod(node, "client"), pod(node, "web")
    listeners = []
    for _ in range(2):
        listener = web.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("0.0.0.0", 7100))
        listener.listen(16)
        listener.setblocking(False)
        listeners.append(listener)
    accepted = [0, 0]
    while not all(accepted):  # which of the two is the kernel's to say
        with client.tcp(web.address, 7100) as near:
            (ready,), _, _ = select.select(listeners, [], [], 10)
            accepted[listeners.index(ready)] += 1
            far, _ = ready.accept()
            with Connection(near, far) as made:
                far.settimeout(10)
                made.say(b"to whom?")
                assert pair(node).client.messages == 1
                command = [sys.executable, "-c", ECHO, str(far.fileno())]
                if all(accepted):
                    with subprocess.Popen(command, pass_fds=[far.fileno()]):
                        far.close()
                        near.sendall(b"and now?")
                        assert near.recv(100) == b"AND NOW?"
                        assert pair(node).server.messages == 2
                        near.shutdown(socket.SHUT_WR)
        wait(lambda: not list(node.accelerator.pairs()))
    for each in listeners:
        each.close()
