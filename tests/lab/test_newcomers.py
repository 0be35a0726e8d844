"""A pod sends before anybody knows of it: where policies are enforced that comes to nothing."""

from __future__ import annotations

import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.pybpf import links
from k8sdatapath.resource import Resource
from tests.lab.test_pod_tracker import until
from tests.support.agents import NodeUnderTest, ask, kube_node, plugin
from tests.support.api_double import ApiDouble
from tests.support.policed import WEB, allow, both, put_pod, served, start

PORT = 9999
OUTSIDE = "192.0.2.101", "2001:db8:2::101"
LOCAL = "10.1.1.3", "fd00:1:1::3"
PAUSE = 0.0002
MAPPED = "::ffff:"


class Ear(Resource):
    """Hears datagrams of both families in a namespace."""

    def __init__(self, netns: NetNs) -> None:
        self._socket = netns.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(("::", PORT))

    def heard(self) -> set[str]:
        """From whom, since it was asked last."""
        found = set()
        with suppress(BlockingIOError):
            while True:
                found.add(self._socket.recvfrom(64)[1][0].removeprefix(MAPPED))
        return found

    def close(self) -> None:
        self._socket.close()


@contextmanager
def hasty(netns: NetNs, addresses: Sequence[str]) -> Iterator[Counter[str]]:
    """Sends to addresses without end, from before its namespace has a device; tells how often it could."""
    sent = Counter[str]()
    over = threading.Event()
    out = netns.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def run() -> None:
        while not over.wait(PAUSE):
            for address in addresses:
                with suppress(OSError):
                    out.sendto(b"early", (address if ":" in address else f"{MAPPED}{address}", PORT))
                    sent[address] += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()
        out.close()


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[tuple[NodeUnderTest, ApiDouble]]:
    """Its node knows pods by their routes."""
    with served(tmp_path, identityAllocationMode="memory") as (node, api):
        node.arguments.remove("--pod-device-pattern=v*")
        put_pod(api, "local", 3)
        yield node, api


class Scene(Resource):
    """A pod of the node, a host outside, and pods that come and go, all of which send and listen."""

    def __init__(self, node: NodeUnderTest, local: NetNs) -> None:
        self._node = node
        self._new = node.wires.namespace("new")
        with ExitStack() as own:
            self._local, self._there, self._outside = (
                own.enter_context(Ear(each)) for each in (local, self._new, node.outside)
            )
            self._targets = list(LOCAL)
            self._given = own.enter_context(hasty(node.outside, self._targets))
            node.until(lambda: self._local.heard() == set(OUTSIDE))  # who is known is open
            self._sent = own.enter_context(hasty(self._new, (*LOCAL, *OUTSIDE)))
            self._own = own.pop_all()

    def come(self, numbers: Iterable[int]) -> None:
        """Each is gone before the next."""
        for last in numbers:
            before, addresses = self._sent.copy(), (f"10.1.1.{last}", f"fd00:1:1::{last}")
            self._targets[len(LOCAL) :] = addresses
            self._node.wires.routed(
                "new", self._new, *map("{}/{}".format, addresses, (32, 128)), mac="02:00:00:00:01:77"
            )
            until(lambda before=before: all(self._sent[each] > before[each] + 3 for each in before))
            until(lambda addresses=addresses: all(self._given[each] for each in addresses))
            self._node.wires.delete("new")

    def heard(self) -> tuple[set[str], set[str], set[str]]:
        """From whom the pod, the host outside and the new pods have heard."""
        return self._local.heard(), self._outside.heard(), self._there.heard()

    def close(self) -> None:
        self._own.close()


NOTHING = set(OUTSIDE), set[str](), set[str]()


def give_networks(node: NodeUnderTest, api: ApiDouble, *networks: str) -> None:
    """The node's pods have addresses in these, and its agent knows."""
    api.put("nodes", kube_node(node) | {"spec": {"podCIDRs": networks}})
    node.until(lambda: f"pods of this node are in {', '.join(networks)}" in node.messages())


def test_what_a_new_pod_sends_first_gets_nowhere(routed: tuple[NodeUnderTest, ApiDouble]) -> None:
    """Nor what it is sent: fifty of them."""
    node, api = routed
    api.put("nodes", kube_node(node))
    local = node.pod("local", 3)
    node.start()
    with Scene(node, local) as scene:
        scene.come(range(100, 150))
        assert scene.heard() == NOTHING


def test_nor_while_the_api_server_is_away(routed: tuple[NodeUnderTest, ApiDouble]) -> None:
    """What was known is, without an agent, and with one that cannot ask; also what came late, for others."""
    node, api = routed
    api.put("nodes", kube_node(node) | {"spec": {}})
    local = node.pod("local", 3)
    node.start()
    give_networks(node, api, "10.77.1.0/24")
    give_networks(node, api, "10.1.1.0/24", "fd00:1:1::/64")
    with Scene(node, local) as scene:
        scene.come(range(100, 105))
        node.stop(signal.SIGKILL)
        scene.come(range(105, 110))
        api.down()
        before = program(node)
        node.launch()
        node.until(lambda: program(node) != before)
        scene.come(range(110, 120))
        assert scene.heard() == NOTHING
        api.up()


def program(node: NodeUnderTest) -> int:
    """The number of the one that packets leave by."""
    with node.pins.open_link("to_uplink-eth0") as link:
        return links.info(link).program_id


def test_a_pod_nobody_knows_is_cut_off_until_it_is_known(
    cluster: tuple[NodeUnderTest, ApiDouble],
) -> None:
    node, api = cluster
    start(node, api)
    late = node.pod("late", 5)
    node.until(lambda: cut_off(node, "vlate"))
    assert both(late) == {False}
    put_pod(api, "late", 5)
    node.until(lambda: both(late) == {True})


def test_a_device_is_cut_off_as_soon_as_it_is_there(
    cluster: tuple[NodeUnderTest, ApiDouble],
) -> None:
    """Its routes come later, and who it is later still."""
    node, api = cluster
    start(node, api)
    wires = node.wires
    early = wires.namespace("early")

    def plug_in() -> None:
        with Netlink() as net:
            net.create_veth("vearly", "eth0", peer_netns=early)
            net.add_address("vearly", ip_interface("10.1.9.1/30"))

    def set_up() -> None:
        with Netlink() as net:
            net.set_up("eth0")
            net.add_address("eth0", ip_interface("10.1.9.2/30"))
            net.add_route(ip_network("0.0.0.0/0"), device="eth0", via=ip_interface("10.1.9.1/30").ip)

    wires.node.call(plug_in)
    early.call(set_up)
    node.until(lambda: cut_off(node, "vearly"))
    for address in WEB, "10.1.9.1":
        with pytest.raises(TimeoutError):
            ask(early, address, 8080, timeout=0.4)
    assert "from_pod-vearly" in node.pins.links


def cut_off(node: NodeUnderTest, device: str) -> bool:
    """Whether the log says so of a device."""
    return any("cut off" in line["message"] and line.get("device") == device for line in node.log)


def test_a_pod_that_the_plugin_tells_of_sends_nothing_before_its_policy_is_in_force(
    cluster: tuple[NodeUnderTest, ApiDouble],
) -> None:
    node, api = cluster
    allow(api, app="client")
    put_pod(api, "client", 2)
    client = node.pod("client", 2)
    node.pod("web", 3)
    socket_path = node.config.with_name("cni.sock")
    node.arguments = [each for each in node.arguments if not each.startswith("--pod-device-pattern")]
    node.start(f"--cni-socket={socket_path}")
    plugin(node, socket_path, "client", 2)
    plugin(node, socket_path, "web", 3)
    assert both(client) == {False}  # the runtime has told where web is, and nobody yet who it is
    put_pod(api, "web", 3)
    node.until(lambda: both(client) == {True})
    node.stop(signal.SIGKILL)
    node.start(f"--cni-socket={socket_path}")
    assert both(client) == {True}
