"""What an agent reads off its source: pods, nodes, and its own node as it really is."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from k8sdatapath.agent.source import Listener, NodeSource
from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.events import Batch, ObjectEvent
from k8sdatapath.kube.objects import Endpoint, EndpointSlice, KubeNode, KubePod, KubeService
from k8sdatapath.model import IPAddress, Selection

DEVICE, STATUS, PEER, POD, BACKEND = map(
    ip_address, ("192.0.2.11", "203.0.113.1", "192.0.2.12", "10.1.1.2", "10.1.1.3")
)


class Given:
    """A source that tells what it is given."""

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        yield from self._batches

    def close(self) -> None:
        """There is nothing to close."""


class Heard:
    """What the listener was told."""

    def __init__(self) -> None:
        self.pods: list[tuple[dict[str, tuple[IPAddress, ...]], bool]] = []
        self.workloads: list[list[str]] = []
        self.everybody: list[list[str]] = []
        self.nodes: list[list[str]] = []
        self.own: tuple[IPAddress, ...] = (DEVICE,)

    def through(self, *batches: Batch, **options: Any) -> list[Batch]:
        listener = Listener(
            pods=lambda pods, complete: self.pods.append((dict(pods), complete)),
            workloads=lambda pods: self.workloads.append([pod.name for pod in pods]),
            everybody=lambda pods: self.everybody.append([pod.name for pod in pods]),
            nodes=lambda nodes: self.nodes.append([node.name for node in nodes]),
            addresses=lambda: self.own,
        )
        return list(NodeSource(Given(*batches), "n1", listener, **options).batches())


def event(value: Any) -> ObjectEvent:
    kind = type(value).__name__.removeprefix("Kube")
    return ObjectEvent(kind, value.namespace, value.name, value, 0.0)


def pod(name: str, node: str = "n1", address: IPAddress = POD) -> KubePod:
    return KubePod("shop", name, node, (address,), (), ("", ""))


def sliced(*addresses: IPAddress, node: str = "n1") -> EndpointSlice:
    endpoints = tuple(Endpoint(each, node=node) for each in addresses)
    return EndpointSlice("shop", "web-1", "web", 4, (), endpoints)


def told(batch: Batch) -> dict[str, Any]:
    return {each.name: each.object for each in batch.events}


def test_the_node_has_its_devices_addresses_besides_those_it_tells() -> None:
    node = KubeNode("n1", "z1", (STATUS,))
    (batch,) = Heard().through(Batch((event(node),), True))
    assert told(batch)["n1"].addresses == (STATUS, DEVICE)
    assert told(batch)["n1"].zone == "z1"


def test_without_a_node_object_one_is_made_once_all_is_known() -> None:
    heard = Heard()
    first, second, third = heard.through(Batch((), False), Batch((), True), Batch((), True))
    assert (first.events, third.events) == ((), ())
    assert told(second)["n1"].addresses == (DEVICE,)
    assert heard.nodes == [[]]


def test_pods_are_those_of_the_node_and_endpoints_without_an_object() -> None:
    heard = Heard()
    elsewhere = pod("elsewhere", "n2", PEER)
    slices = sliced(POD, BACKEND, DEVICE)  # of a pod, of nobody known, of the node itself
    gone = ObjectEvent("Pod", "shop", "web", None, 0.0)
    heard.through(
        Batch((event(pod("web")), event(elsewhere)), False),
        Batch((event(slices),), True),
        Batch((event(slices), event(pod("web"))), True),
        Batch((gone,), True),
    )
    assert heard.pods == [
        ({"shop/web": (POD,)}, False),
        ({"shop/web": (POD,), "shop/web-1 10.1.1.3": (BACKEND,)}, True),
        ({"shop/web-1 10.1.1.2": (POD,), "shop/web-1 10.1.1.3": (BACKEND,)}, True),
    ]
    assert heard.workloads == [["web"], []]  # of all that are known
    assert heard.everybody == [["web", "elsewhere"], ["elsewhere"]]


def test_nodes_are_told_when_all_are_known_and_as_they_change() -> None:
    heard = Heard()
    one, two = event(KubeNode("n1")), event(KubeNode("n2", addresses=(PEER,)))
    heard.through(
        Batch((one,), False),
        Batch((two,), True),
        Batch((two,), True),
        Batch((ObjectEvent("Node", "", "n2", None, 0.0),), True),
    )
    assert heard.nodes == [["n1", "n2"], ["n1"]]


def test_what_cannot_be_read_is_as_it_was_and_told() -> None:
    heard = Heard()
    bad = ObjectEvent("Node", "", "n1", None, 0.0, ManifestError("x", "y", "z"))
    _, batch = heard.through(
        Batch((event(KubeNode("n1", "z1")), event(pod("web"))), True), Batch((bad,), True)
    )
    assert batch.events == (bad,)
    assert len(heard.pods) == 1


def test_services_that_ask_for_nothing_get_the_stock_selection() -> None:
    plain = KubeService("shop", "plain", (), ())
    turns = KubeService("shop", "turns", (), (), selection=Selection.ROUND_ROBIN)
    batches = Batch((event(plain), event(turns)), False)
    (batch,) = Heard().through(batches, selection=Selection.MAGLEV)
    assert {name: each.selection.name for name, each in told(batch).items()} == {
        "plain": "MAGLEV",
        "turns": "ROUND_ROBIN",
    }
    assert Heard().through(batches) == [batches]
