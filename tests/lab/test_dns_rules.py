"""Names that pods may ask for, between real resolvers and a real name server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from k8sdatapath import Lab, Service
from k8sdatapath.model import Protocol
from k8sdatapath.model.flow import DNS, TCP, UDP, DropReason, Flow, Verdict
from tests.lab.test_dns import FAMILIES, KINDS, VIPS, eventually
from tests.lab.test_policy import reaches

pytestmark = pytest.mark.lab

PROTOCOLS = pytest.mark.parametrize("over", ["+notcp", "+tcp"])

RULES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints: [{matchLabels: {app: names}}]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchName: bank.example}, {matchPattern: "*.shop.example"}]}
  - toFQDNs: [{matchPattern: "*"}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
"""


class Shop:
    """A pod that may ask for some names, one that may ask for all, and dnsmasq behind a service."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.web = lab.pod("web", labels={"app": "web"}, namespace="shop")
        self.other = lab.pod("other", labels={"app": "other"}, namespace="shop")
        self.names = lab.pod("names", labels={"app": "names"}, namespace="shop")
        self.bank = lab.external("bank")
        self.bank.serve_http(8080, "money")
        for family, vip in VIPS.items():
            backend = self.names.at(53, family)
            for protocol in (Protocol.UDP, Protocol.TCP):
                lab.node.services.upsert(Service(vip, 53, protocol=protocol, backends=[backend]))
        lab.apply(RULES)

    def dig(self, name: str, family: int = 4, *, who: str = "web", options: tuple[str, ...] = ()) -> str:
        """What dig makes of the answer: its status, and the addresses."""
        asked = ["dig", f"@{VIPS[family]}", name, KINDS[family], "+tries=1", "+time=5", *options]
        pod = self.web if who == "web" else self.other
        process = pod.popen(asked, stdout=subprocess.PIPE, text=True)
        said, _ = process.communicate(timeout=30)
        return str(said)


@pytest.fixture(scope="module", params=[True, False], ids=["sockets", "packets"])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    with Lab.start(policy=True, dns=True, flows="all", pod_sockets=request.param) as lab:
        made = Shop(lab)
        zone = [f"--address=/example/{each}" for each in made.bank.addresses]
        command = ["dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--user=root", *zone]
        server = made.names.popen([*command, "--pid-file", "--log-facility=-"], stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: "NOERROR" in made.dig("up.example", who="other"))
            yield made
        finally:
            server.kill()
            server.wait()


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("name", ["bank.example", "Web.SHOP.example"])
def test_a_name_that_is_allowed_is_answered(shop: Shop, name: str, over: str, family: int) -> None:
    said = shop.dig(name, family, options=(over,))
    assert "status: NOERROR" in said
    assert str(shop.bank.addresses[family == 6]) in said


@FAMILIES
@PROTOCOLS
def test_any_other_is_refused_at_once(shop: Shop, over: str, family: int) -> None:
    assert "status: REFUSED" in shop.dig("evil.example", family, options=(over,))
    assert "status: NOERROR" in shop.dig("evil.example", family, who="other", options=(over,))


@FAMILIES
def test_an_answer_opens_what_goes_by_name(shop: Shop, family: int) -> None:
    bank = shop.bank.addresses[family == 6]
    assert "status: NOERROR" in shop.dig("bank.example", family)
    assert reaches(shop.web, bank, 8080)


def conversation(shop: Shop, name: str) -> list[Flow]:
    """What was asked and answered about a name."""
    told = (each for each in shop.lab.node.flows.last(2000) if isinstance(each, Flow))
    found = [each for each in told if each.l7 is not None and isinstance(each.l7.record, DNS)]
    return [each for each in found if each.l7.record.query == f"{name}."]


@FAMILIES
@PROTOCOLS
def test_questions_and_answers_are_flows(shop: Shop, over: str, family: int) -> None:
    name, where = f"flows{over[1:]}{family}.shop.example", str(shop.bank.addresses[family == 6])
    shop.dig(name, family, options=(over,))
    eventually(lambda: len(conversation(shop, name)) == 2)
    asked, answered = conversation(shop, name)
    assert (asked.verdict, answered.verdict) == (Verdict.FORWARDED, Verdict.FORWARDED)
    assert (asked.source.pod_name, asked.destination.pod_name) == ("web", "names")
    assert (answered.source.pod_name, answered.destination.pod_name) == ("names", "web")
    assert (asked.is_reply, answered.is_reply) == (False, True)
    assert asked.summary == f"DNS Query {name}. {KINDS[family]}"
    assert answered.l7.record.ips == (where,)
    assert answered.l7.record.rrtypes == (KINDS[family],)
    assert answered.l7.latency_ns > 0
    assert type(asked.l4) is type(answered.l4) is (TCP if over == "+tcp" else UDP)


@FAMILIES
@PROTOCOLS
def test_a_refused_question_is_a_dropped_flow(shop: Shop, over: str, family: int) -> None:
    name = f"flows{over[1:]}{family}.evil.example"
    shop.dig(name, family, options=(over,))
    eventually(lambda: conversation(shop, name))
    (flow,) = conversation(shop, name)
    assert (flow.verdict, flow.drop_reason) == (Verdict.DROPPED, DropReason.POLICY_DENIED)
    assert (flow.source.pod_name, flow.l4.destination_port) == ("web", 53)


def test_questions_that_nothing_is_asked_of_are_no_flows(shop: Shop) -> None:
    shop.dig("other.evil.example", who="other")
    shop.dig("after.shop.example")
    eventually(lambda: len(conversation(shop, "after.shop.example")) == 2)
    assert conversation(shop, "other.evil.example") == []


def test_it_is_counted(shop: Shop) -> None:
    before = shop.lab.node.datapath.counters()["REJECT_NAME"].packets
    shop.dig("evil.example")
    assert shop.lab.node.datapath.counters()["REJECT_NAME"].packets == before + 1
