"""Policies and workloads out of events: told of what changes, and always what a fresh start comes to."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from attrs import evolve

from k8sdatapath.datapath.policy_set import PolicySet
from k8sdatapath.kube.events import ObjectEvent
from k8sdatapath.kube.objects import KubeRaw
from k8sdatapath.kube.policy import AUDIT, parse_policies
from k8sdatapath.kube.policy.objects import flattened
from k8sdatapath.kube.policy.reading import VISIBLE
from k8sdatapath.kube.policy.translator import PolicyTranslator, manifest_events, policy_resources
from k8sdatapath.model.named_port import NamedPort
from k8sdatapath.model.policy import Block
from k8sdatapath.model.workload import Workload


def event(kind: str, name: str, space: str = "shop", **fields: Any) -> ObjectEvent:
    """How an object is now; without fields it is gone."""
    metadata = {"name": name, "namespace": space} | fields.pop("metadata", {})
    value = {"apiVersion": VERSIONS[kind], "kind": kind, "metadata": metadata} | fields
    raw = (
        KubeRaw(kind, space, name, value, f"test ({kind} {name})")
        if fields or metadata.keys() - GONE
        else None
    )
    return ObjectEvent(kind, space, name, raw, 0.0)


NETWORKS = ("192.0.2.0/24", "198.51.100.0/24")
GONE = {"name", "namespace"}
VERSIONS = {
    "Namespace": "v1",
    "Pod": "v1",
    "Node": "v1",
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Deployment": "apps/v1",
    "CiliumCIDRGroup": "cilium.io/v2",
    "NetworkPolicy": "networking.k8s.io/v1",
    "CiliumNetworkPolicy": "cilium.io/v2",
}


def namespace(name: str = "shop", **labels: str) -> ObjectEvent:
    return event("Namespace", name, "", metadata={"labels": labels})


def pod(name: str, app: str, ip: str, node: str = "n1", space: str = "shop", **spec: Any) -> ObjectEvent:
    return event(
        "Pod",
        name,
        space,
        metadata={"labels": {"app": app}, "uid": name},
        spec={"nodeName": node, "containers": []} | spec,
        status={"podIP": ip, "phase": "Running"},
    )


def allow(app: str, **rule: Any) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": {"app": app}}, "ingress": [rule] if rule else []}


@pytest.fixture
def translator() -> PolicyTranslator:
    made = PolicyTranslator("n1")
    made.update([namespace(team="one")])
    return made


def test_pods_are_known_by_their_labels_and_those_of_their_namespace(translator):
    ports = [{"ports": [{"containerPort": 8080, "name": "http"}]}]
    delta = translator.update(
        [pod("web", "web", "10.0.0.1", containers=ports), pod("db", "db", "10.0.0.2", node="n2")]
    )
    web, db = delta.workloads
    assert web.name == "shop/web"
    assert delta.local == {"shop/web"}
    assert {"k8s:app=web", "k8s:io.cilium.k8s.namespace.labels.team=one"} < set(web.labels)
    assert "k8s:io.cilium.k8s.policy.serviceaccount=default" in web.labels
    assert web.ports == (NamedPort("http", 8080),)
    assert [str(each) for each in db.addresses] == ["10.0.0.2"]
    assert translator.update([pod("db", "db", "10.0.0.2", node="n2")]).workloads == ()
    delta = translator.update([namespace(team="two")])
    assert {each.name for each in delta.workloads} == {"shop/web", "shop/db"}
    assert all("k8s:io.cilium.k8s.namespace.labels.team=two" in each.labels for each in delta.workloads)
    assert translator.update([event("Pod", "web")]).gone == ("shop/web",)


def test_an_annotation_says_that_policies_only_look_on_at_a_pod(translator):
    def annotated(word: str) -> ObjectEvent:
        metadata = {"labels": {"app": "web"}, "annotations": {AUDIT: word}}
        return event("Pod", "web", metadata=metadata, spec={"nodeName": "n1", "containers": []})

    for word, audit in (("true", True), ("false", False), ("true", True)):
        (web,) = translator.update([annotated(word)]).workloads
        assert web.audit is audit
    delta = translator.update([annotated("yes")])
    assert (delta.workloads, delta.gone) == ((), ())
    assert "metadata.annotations[k8sdatapath.io/audit]: 'yes'" in str(delta.errors["Pod", "shop", "web"])


def test_an_annotation_says_what_is_seen_of_a_pod(translator):
    """Ours goes before Cilium's. One that is wrong is told, and its pod is known all the same."""

    def annotated(**annotations: str) -> ObjectEvent:
        named = {VISIBLE[int(name[-1])]: text for name, text in annotations.items()}
        metadata = {"labels": {"app": "web"}, "annotations": named}
        return event("Pod", "web", metadata=metadata, spec={"nodeName": "n1", "containers": []})

    for given, visible in (
        (annotated(n0="<Ingress/80/TCP/HTTP>", n1="<Egress/53/UDP/DNS>"), "<Ingress/80/TCP/HTTP>"),
        (annotated(n1="<Egress/53/UDP/DNS>", n2="nonsense"), "<Egress/53/UDP/DNS>"),
        (annotated(n2="<Egress/53/TCP/dns>, <Egress/9/TCP/HTTP>"), "<Egress/9/TCP/HTTP>,<Egress/53/TCP/DNS>"),
        (annotated(n1="<Egress/53/ANY/DNS>"), "<Egress/53/TCP/DNS>,<Egress/53/UDP/DNS>"),
        (annotated(n0="", n1="<Egress/53/UDP/DNS>"), ""),
    ):
        (web,) = translator.update([given]).workloads
        assert ",".join(map(str, web.visible)) == visible
    (web,) = translator.update([annotated(n2="<Egress/9/TCP/HTTP>")]).workloads
    delta = translator.update([annotated(n0="<Ingress/9092/TCP/Kafka>")])
    assert delta.workloads == (evolve(web, visible=()),)
    told = "metadata.annotations[k8sdatapath.io/visibility]: 'KAFKA' is not read, HTTP and DNS are"
    assert told in str(delta.errors["Pod", "shop", "web"])
    assert translator.update([annotated()]).errors == {("Pod", "shop", "web"): None}


def test_a_pod_of_a_namespace_that_is_not_known_yet_waits(translator):
    orphan = pod("a", "a", "10.0.0.3", space="new")
    assert translator.update([orphan]).workloads == ()
    [made] = translator.update([namespace("new", team="three")]).workloads
    assert made.name == "new/a"


def test_who_has_the_addresses_of_the_node_or_is_over_is_no_workload(translator):
    over = event("Pod", "b", spec={"containers": []}, status={"podIP": "10.0.0.4", "phase": "Succeeded"})
    assert translator.update([pod("a", "a", "192.0.2.1", hostNetwork=True), over]).workloads == ()


def test_nodes_this_one_and_others(translator):
    def node(name: str) -> ObjectEvent:
        status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}
        return event("Node", name, "", metadata={"labels": {"role": "worker"}}, status=status)

    here, there = translator.update([node("n1"), node("n2")]).workloads
    assert here.labels == ("node:role=worker", "reserved:host=")
    assert there.labels == ("node:role=worker", "reserved:remote-node=")


def test_templates_are_who_pods_will_be(translator):
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}
    [made] = translator.update([event("Deployment", "web", spec={"template": template})]).workloads
    [real] = translator.update([pod("web-1", "web", "10.0.0.1")]).workloads
    assert made.name == "Deployment shop/web"
    assert made.addresses == ()
    assert made.labels == real.labels


def test_a_policy_that_is_wrong_changes_nothing(translator):
    good = event("NetworkPolicy", "p", spec=allow("web"))
    delta = translator.update([good])
    assert [each.name for each in delta.policies] == ["NetworkPolicy shop/p"]
    key = ("NetworkPolicy", "shop", "p")
    delta = translator.update([event("NetworkPolicy", "p", spec=allow("web", ports=[{"port": 99999}]))])
    assert (delta.policies, delta.removed) == ((), ())
    assert "99999 is not a port" in str(delta.errors[key])
    assert list(translator.policies) == ["NetworkPolicy shop/p"]
    delta = translator.update([good])
    assert (delta.policies, dict(delta.errors)) == ((), {key: None})
    assert translator.update([event("NetworkPolicy", "p")]).removed == ("NetworkPolicy shop/p",)


def test_specs_come_and_go(translator):
    def several(*apps: str) -> ObjectEvent:
        specs = [{"endpointSelector": {"matchLabels": {"app": app}}, "ingress": [{}]} for app in apps]
        return event("CiliumNetworkPolicy", "p", specs=specs)

    assert len(translator.update([several("a", "b", "c")]).policies) == 3
    delta = translator.update([several("a", "x")])
    assert [each.name for each in delta.policies] == ["CiliumNetworkPolicy shop/p specs[1]"]
    assert delta.removed == ("CiliumNetworkPolicy shop/p specs[2]",)


def egress(name: str = "p", **rule: Any) -> ObjectEvent:
    return event("CiliumNetworkPolicy", name, spec={"endpointSelector": {}, "egress": [rule]})


def test_what_a_policy_names_may_come_later_and_change(translator):
    key = ("CiliumNetworkPolicy", "shop", "p")
    delta = translator.update([egress(toCIDRSet=[{"cidrGroupRef": "banks"}])])
    assert delta.policies[0].rules[0].peers == ()
    assert delta.policies[0].isolates
    assert "no CiliumCIDRGroup 'banks'" in delta.missing[key][0]
    group = event("CiliumCIDRGroup", "banks", "", spec={"externalCIDRs": ["192.0.2.0/24"]})
    delta = translator.update([group])
    assert [str(peer) for peer in delta.policies[0].rules[0].peers] == ["192.0.2.0/24"]
    assert delta.missing == {key: ()}
    assert translator.update([group]).policies == ()
    other = event("CiliumCIDRGroup", "others", "", spec={"externalCIDRs": ["198.51.100.0/24"]})
    assert translator.update([other]).policies == ()
    delta = translator.update([event("CiliumCIDRGroup", "banks", "")])
    assert delta.policies[0].rules[0].peers == ()


def test_a_service_without_selector_is_what_its_slices_say(translator):
    bank = {"k8sService": {"serviceName": "bank"}}
    service = event("Service", "bank", spec={"ports": [{"port": 443}]})
    translator.update([egress(toServices=[bank]), service])

    def slice(*addresses: str) -> ObjectEvent:
        return event(
            "EndpointSlice",
            "bank-1",
            metadata={"labels": {"kubernetes.io/service-name": "bank"}},
            addressType="IPv4",
            endpoints=[{"addresses": [each]} for each in addresses],
        )

    for addresses in ("192.0.2.1",), ("192.0.2.1", "192.0.2.2"):
        delta = translator.update([slice(*addresses)])
        assert [str(peer) for peer in delta.policies[0].rules[0].peers] == [f"{ip}/32" for ip in addresses]


@pytest.mark.parametrize("entity", ["kube-apiserver", "cluster"])
def test_the_api_server_is_where_its_service_leads(translator, entity):
    def peers() -> list[str]:
        (policy,) = translator.policies.values()
        return [str(peer) for peer in policy.rules[0].peers if isinstance(peer, Block)]

    def slice(name: str, service: str, *addresses: str) -> ObjectEvent:
        labels = {"kubernetes.io/service-name": service}
        endpoints = [{"addresses": [each]} for each in addresses]
        return event(
            "EndpointSlice",
            name,
            "default",
            metadata={"labels": labels},
            addressType="IPv4",
            endpoints=endpoints,
        )

    delta = translator.update([egress(toEntities=[entity])])
    assert (peers(), delta.missing) == ([], {})
    service = event("Service", "kubernetes", "default", spec={"ports": [{"port": 443}]})
    translator.update([service, slice("kubernetes", "kubernetes", "192.0.2.1")])
    assert peers() == ["192.0.2.1/32"]
    moved = translator.update([slice("kubernetes", "kubernetes", "192.0.2.1", "192.0.2.2")])
    assert len(moved.policies) == 1
    assert peers() == ["192.0.2.1/32", "192.0.2.2/32"]
    assert not translator.update([slice("other-1", "other", "192.0.2.9")]).policies, "no policy is read anew"
    translator.update([event("EndpointSlice", "kubernetes", "default")])
    assert peers() == []


def test_an_api_server_on_a_node_or_outside_is_reached_by_its_entity():
    text = """
apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {ports: [{port: 443, targetPort: 6443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.1]}, {addresses: [203.0.113.1]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: operator, namespace: shop}
spec:
  endpointSelector: {}
  egress: [{toEntities: [kube-apiserver], toPorts: [{ports: [{port: "6443", protocol: TCP}]}]}]
"""
    operator = Workload.pod("shop/operator")
    nodes = [Workload.node(f"n{at}", addresses=[f"192.0.2.{at}"]) for at in (1, 2)]
    policies = PolicySet(parse_policies(text), [operator, *nodes])
    reached = {
        name: bool(policies.verdict("shop/operator", name, 6443))
        for name in ("n1", "n2", "203.0.113.1", "203.0.113.2")
    }
    assert reached == {"n1": True, "n2": False, "203.0.113.1": True, "203.0.113.2": False}
    assert not policies.verdict("shop/operator", "n1", 10250)


def test_policies_by_name_are_refused_unless_somebody_tells_names():
    named = egress(toFQDNs=[{"matchName": "bank.example"}])
    delta = PolicyTranslator().update([named])
    assert delta.policies == ()
    assert "nobody tells which addresses" in str(delta.errors["CiliumNetworkPolicy", "shop", "p"])
    assert len(PolicyTranslator(names=True).update([named]).policies) == 1


def test_policies_that_ask_for_requests_want_somebody_who_looks_at_them():
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}]
    spec = {"endpointSelector": {}, "ingress": [{"toPorts": ports}]}
    asking = event("CiliumNetworkPolicy", "p", spec=spec)
    (error,) = PolicyTranslator().update([asking]).errors.values()
    assert "nothing here looks at requests" in str(error)
    (policy,) = PolicyTranslator(requests=True).update([asking]).policies
    assert [str(each) for each in policy.rules[0].l7] == ["GET any path"]


@pytest.mark.parametrize("seed", range(20))
def test_changes_lead_where_a_fresh_start_does(seed):
    chance = random.Random(seed)
    there: dict[tuple[str, str, str], ObjectEvent] = {}
    translator = PolicyTranslator("n1")
    policies: dict[str, Any] = {}
    workloads: dict[str, Any] = {}
    for _ in range(60):
        name = chance.choice("abc")
        now = chance.choice(
            [
                event(chance.choice(["Pod", "NetworkPolicy", "CiliumNetworkPolicy"]), name),
                event("CiliumCIDRGroup", name, ""),
                pod(name, chance.choice("xy"), f"10.0.0.{chance.randrange(9)}", chance.choice(["n1", "n2"])),
                namespace(team=chance.choice("12")),
                event("NetworkPolicy", name, spec=allow("x", ports=[{"port": chance.choice([0, 1, 2])}])),
                egress(name, toCIDRSet=[{"cidrGroupRef": chance.choice("ab")}]),
                event(
                    "CiliumCIDRGroup", name, "", spec={"externalCIDRs": [f"192.0.{chance.choice('12')}.0/24"]}
                ),
            ]
        )
        delta = translator.update([now])
        if now.key not in delta.errors or delta.errors[now.key] is None:
            there[now.key] = now
        policies |= {each.name: each for each in delta.policies}
        workloads |= {each.name: each for each in delta.workloads}
        for gone in delta.removed:
            del policies[gone]
        for gone in delta.gone:
            del workloads[gone]
    fresh = PolicyTranslator("n1")
    fresh.update([each for each in there.values() if each.object is not None])
    assert policies == translator.policies == fresh.policies
    assert workloads == translator.workloads == fresh.workloads


def test_files_tell_what_a_watch_would():
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}}
    document = {"apiVersion": "v1", "kind": "List", "items": [policy | {"spec": allow("web")}]}
    found = PolicyTranslator().update(manifest_events(flattened(document, "here")))
    assert found.policies == parse_policies(json.dumps(document), "x.json")
    assert found.workloads == ()


def test_all_that_is_watched_is_understood():
    kinds = [each.kind for each in policy_resources(cilium=True, tiers=True)]
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) <= PolicyTranslator()._takers.keys()
