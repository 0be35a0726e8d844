"""Name servers between real sockets: what pods are answered may be dialled, and flows have the names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from dnslib import RCODE

from k8sdatapath import Accelerated, Lab, Service
from k8sdatapath.errors import ModelError
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Protocol
from k8sdatapath.model.flow import Flow
from k8sdatapath.node import NodeConfig
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run
from tests.lab.test_policy import denied, reaches
from tests.support.acceleration import choose
from tests.support.connections import dial, listen
from tests.support.name_server import NameServer, framed, messages, question, reply, resolve

pytestmark = pytest.mark.lab

BY_NAME = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints: [{matchLabels: {app: names}}]
    toPorts: [{ports: [{port: "53", protocol: UDP}]}]
  - toEntities: [world]
    toPorts: [{ports: [{port: "53", protocol: UDP}]}]
  - toFQDNs: [{matchName: bank.example}, {matchPattern: "*.shop.example"}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
"""
VIPS = {4: "10.96.0.53", 6: "fd00:10:96::53"}
KINDS = {4: "A", 6: "AAAA"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


class Shop:
    """A pod that dials by name, one that does not, and two name servers: a pod, and one outside."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.web = lab.pod("web", labels={"app": "web"}, namespace="shop")
        self.other = lab.pod("other", labels={"app": "other"}, namespace="shop")
        self.names = lab.pod("names", labels={"app": "names"}, namespace="shop")
        self.outside = lab.external("outside")
        self.banks = [lab.external(f"bank{number}") for number in range(6)]
        for bank in self.banks:
            bank.serve_http(8080, "money")
        for family, vip in VIPS.items():
            backend = self.names.at(53, family)
            lab.node.services.upsert(Service(vip, 53, protocol=Protocol.UDP, backends=[backend]))
        lab.apply(BY_NAME)

    def server(self, where: str, family: int) -> str:
        hosts: dict[str, Host] = {"pod": self.names, "outside": self.outside}
        return VIPS[family] if where == "service" else str(hosts[where].addresses[family == 6])


@pytest.fixture(scope="module", params=[True, False], ids=["sockets", "packets"])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    """One whose sockets hand over all that nobody reads."""
    visible = {"flows": "all", "dns_visibility": True}
    with Lab.start(policy=True, dns=True, pod_sockets=request.param, accelerate=True, **visible) as lab:
        choose(lab.node, Accelerated("0.0.0.0/0"), Accelerated("::/0"))
        yield Shop(lab)


def eventually(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.01)


def learned(shop: Shop, address: object) -> bool:
    policy = shop.lab.node.policy
    return policy.identity_of(ip_address(str(address))) is not None


@FAMILIES
@pytest.mark.parametrize("where", ["pod", "outside", "service"])
def test_what_was_answered_may_be_dialled(shop: Shop, where: str, family: int) -> None:
    bank = shop.banks[["pod", "outside", "service"].index(where)].addresses[family == 6]
    host = shop.outside if where == "outside" else shop.names
    name = f"{where}{family}.shop.example"
    with NameServer(host.netns, {name: ["edge.cdn.example"], "edge.cdn.example": [str(bank)]}):
        assert denied(shop.web, bank, 8080)
        answer = resolve(shop.web, shop.server(where, family), name, KINDS[family])
        assert str(answer.rr[-1].rdata) == str(bank)
        assert reaches(shop.web, bank, 8080)  # a SYN that was too early is sent again
    (flow, *_) = [
        each
        for each in shop.lab.node.flows.last(200)
        if isinstance(each, Flow) and each.ip is not None and each.ip.destination == str(bank)
    ][::-1]
    assert flow.destination_names == (name,)


@FAMILIES
def test_what_another_pod_was_answered_opens_nothing(shop: Shop, family: int) -> None:
    bank = shop.banks[3].addresses[family == 6]
    watcher = shop.lab.node.datapath.dns
    assert watcher is not None
    with NameServer(shop.names.netns, {"bank.example": [str(bank)]}):
        before = watcher.stats.answers
        resolve(shop.other, shop.server("pod", family), "bank.example", KINDS[family])
        eventually(lambda: watcher.stats.answers > before)
        resolve(shop.web, shop.server("pod", family), "else.example", KINDS[family])
        eventually(lambda: watcher.stats.answers > before + 1)
    assert not learned(shop, bank)
    assert denied(shop.web, bank, 8080)


@FAMILIES
def test_what_nobody_has_asked_for_opens_nothing(shop: Shop, family: int) -> None:
    bank = shop.banks[4].addresses[family == 6]
    watcher = shop.lab.node.datapath.dns
    assert watcher is not None
    zone = {"bank.example": [str(bank)], "a.shop.example": [str(bank)]}

    def forge(asked: bytes) -> list[bytes]:
        """Answers to other questions than the one, and no answers at all, before the right one."""
        kind = KINDS[family]
        others = [question("bank.example", kind, ident=8), question("a.shop.example", kind)]
        return [*(reply(each, zone) for each in others), b"\xff" * 40, reply(asked, {})]

    with NameServer(shop.names.netns, {}) as server, shop.web.socket(10 if family == 6 else 2, 2) as client:
        server.answer = forge
        before = watcher.stats
        client.settimeout(10)
        client.sendto(question("bank.example", KINDS[family]), (shop.server("pod", family), 53))
        for _ in range(4):
            client.recv(4096)
        eventually(lambda: watcher.stats.answers > before.answers)
    after = watcher.stats
    assert (after.strange - before.strange, after.malformed - before.malformed) == (2, 1)
    assert not learned(shop, bank)


def test_a_name_that_is_not_there(shop: Shop) -> None:
    with NameServer(shop.names.netns, {}):
        answer = resolve(shop.web, shop.server("pod", 4), "bank.example")
    assert answer.header.rcode == RCODE.NXDOMAIN


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_questions_are_flows_where_nothing_holds_them_to_names(shop: Shop, over: str) -> None:
    name, server = f"{over}.seen.example", shop.server("pod", 4)
    with NameServer(shop.names.netns, {name: ["192.0.2.7"]}):
        if over == "udp":
            resolve(shop.other, server, name)
        else:
            with shop.other.tcp(server, 53) as client:
                client.send(framed(question(name)))
                next(messages(client))

    def flows() -> list[str]:
        found = (each for each in shop.lab.node.flows.last(200) if isinstance(each, Flow))
        return [each.summary for each in found if each.l7 is not None and name in each.summary]

    eventually(lambda: len(flows()) == 2)
    assert flows() == [f"DNS Query {name}. A", f'DNS Answer "192.0.2.7" TTL: 60 ({name}. A)']


def test_what_is_asked_over_tcp_is_never_handed_over(shop: Shop) -> None:
    """Or nobody would read it, here where no policy holds it to names."""
    accelerator = shop.lab.node.accelerator
    for port, pairs in ((5300, 1), (53, 0)):
        with listen(shop.names, port) as listener, dial(shop.other, listener, shop.server("pod", 4)) as made:
            made.say(framed(question("tcp.example")))
            assert len(list(accelerator.pairs())) == pairs
        eventually(lambda: not list(accelerator.pairs()))  # the farewells of both ends have arrived


def test_dns_visibility_needs_flows() -> None:
    with pytest.raises(ModelError, match="dns_visibility needs dns=True and flows"):
        NodeConfig(policy=True, dns=True, dns_visibility=True)


def test_without_policies_nothing_is_learned() -> None:
    with pytest.raises(ModelError, match="dns needs policy=True"):
        NodeConfig(dns=True)


def test_the_how_to_is_true() -> None:
    ((code, output),) = blocks(ROOT / "docs/how-to/dns.md")
    assert run(code, {}) == output
