"""Policies that cannot be, or cannot be enforced, are refused, and the error names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.policy import decode_policies, parse_policies, read_policies
from k8sdatapath.kube.policy.around import Around
from tests.support.policy_documents import CNP, ingress, rule


def refusal(version: str, kind: str, spec: Any, **more: Any) -> str:
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "p"}, "spec": spec} | more
    with pytest.raises(ManifestError) as caught:
        parse_policies(json.dumps(document), "p.json")
    assert caught.value.where.startswith("p.json: document 1")
    return f"{caught.value.path}: {caught.value.reason}"


NETWORK_POLICY = [
    (None, "spec: missing"),
    ({"podSelector": {}, "Ingress": []}, "spec.Ingress: no such field: did you mean 'ingress' or 'egress'?"),
    (
        {"podSelector": {}, "policyTypes": ["ingress"]},
        "spec.policyTypes[0]: 'ingress' is none of Ingress, Egress",
    ),
    (ingress(to=[]), "spec.ingress[0].to: no such field: there is from, ports"),
    (
        ingress(**{"from": [{}]}),
        "spec.ingress[0].from[0]: one of podSelector, namespaceSelector, ipBlock is needed here, "
        "this has none",
    ),
    (
        ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
        "spec.ingress[0].from[0]: ipBlock stands alone: selectors belong into an item of their own",
    ),
    (
        ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}),
        "spec.ingress[0].from[0].ipBlock.cidr: '10.0.0.0' is not a network: write 10.0.0.0/8 or fd00::/8",
    ),
    (
        ingress(**{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}),
        "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/16 is not a part of 10.0.0.0/8",
    ),
    (ingress(ports=[{"port": 99999}]), "spec.ingress[0].ports[0].port: 99999 is not a port (1 to 65535)"),
    (
        ingress(ports=[{"port": "http", "endPort": 90}]),
        "spec.ingress[0].ports[0].endPort: a range begins with a number, not with 'http'",
    ),
    (
        ingress(ports=[{"port": 80, "endPort": 79}]),
        "spec.ingress[0].ports[0].endPort: 79 is before the first port of the range, 80",
    ),
    (ingress(ports=[{"endPort": 79}]), "spec.ingress[0].ports[0].endPort: a range needs its first port"),
    (ingress(ports=[{"port": "80"}]), "spec.ingress[0].ports[0].port: '80' is text: a port has no quotes"),
    *(
        (
            ingress(ports=[{"port": name}]),
            f"spec.ingress[0].ports[0].port: '{name}' is not a port name "
            "(at most 15 of a-z, 0-9 and -, with a letter)",
        )
        for name in ("HTTP", "a--b", "-a", "8-0", "longer-than-they")
    ),
    (
        {"podSelector": {}, "ingress": [{}, None]},
        "spec.ingress[1]: an item that is empty: fill it in, or take it out",
    ),
    (
        ingress(ports=[{"port": 80, "protocol": "ICMP"}]),
        "spec.ingress[0].ports[0].protocol: 'ICMP' is none of TCP, UDP, SCTP",
    ),
    (
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        "spec.podSelector.matchExpressions[0].values: In needs some",
    ),
    (
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
        "spec.podSelector.matchExpressions[0].values: Exists needs none",
    ),
    (
        {"podSelector": {"matchLabels": {"not a key": "b"}}},
        "spec.podSelector.matchLabels.not a key: 'not a key' is not the key of a label",
    ),
    (
        {"podSelector": {"matchLabels": {"a": 1}}},
        "spec.podSelector.matchLabels.a: 1 is a number, not text",
    ),
]


@pytest.mark.parametrize(("spec", "said"), NETWORK_POLICY, ids=[said for _, said in NETWORK_POLICY])
def test_network_policy_is_refused(spec, said):
    assert refusal("networking.k8s.io/v1", "NetworkPolicy", spec) == said


HTTP = "spec.ingress[0].toPorts[0].rules.http[0]"
DNS = "spec.egress[0].toPorts[0]"


def dns(port: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
    return rule("egress", toPorts=[{"ports": [port or {"port": "53"}], "rules": rules}])


def http(**fields: Any) -> dict[str, Any]:
    return rule(toPorts=[{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [fields]}}])


FQDN = "nobody tells which addresses DNS names have: a node needs dns=True, files --name NAME=ADDRESS"
SERVICE = {"k8sService": {"serviceName": "web"}}
CILIUM = [
    ({"ingress": [{}]}, "spec.endpointSelector: missing"),
    (
        {"endpointSelector": {}},
        "spec: one of ingress, ingressDeny, egress, egressDeny is needed here",
    ),
    (
        {"nodeSelector": {}, "ingress": [{}]},
        "spec.nodeSelector: policies for nodes are clusterwide, and enforced where there is a host firewall",
    ),
    (
        {"endpointSelector": {"matchLabels": {"io.kubernetes.pod.namespace": "z"}}, "ingress": [{}]},
        "spec.endpointSelector: a policy of namespace default cannot select pods of others: "
        "k8s:io.kubernetes.pod.namespace=z",
    ),
    (rule("egress", toFQDNs=[{"matchName": "a.example"}]), f"spec.egress[0].toFQDNs[0].matchName: {FQDN}"),
    (
        rule("egress", toFQDNs=[{"matchName": "*.example"}]),
        "spec.egress[0].toFQDNs[0].matchName: a name has no *: a pattern is matchPattern",
    ),
    (
        rule("egress", toFQDNs=[{"matchName": "a.example", "matchPattern": "*"}]),
        "spec.egress[0].toFQDNs[0]: exactly one of matchName, matchPattern is needed here, "
        "this has matchName and matchPattern",
    ),
    (
        rule("egressDeny", toFQDNs=[{"matchName": "a.example"}]),
        "spec.egressDeny[0].toFQDNs: a deny cannot name peers by DNS: who is not in the answers would pass",
    ),
    (
        rule(fromFQDNs=[{"matchName": "a.example"}]),
        "spec.ingress[0].fromFQDNs: no such field: did you mean 'fromNodes'?",
    ),
    (
        rule("egress", toServices=[{}]),
        "spec.egress[0].toServices[0]: exactly one of k8sService, k8sServiceSelector is needed here",
    ),
    (
        rule("egress", toServices=[SERVICE]),
        "spec.egress[0].toServices[0].k8sService: no Service 'default/web' is here: there is none",
    ),
    (
        rule("egress", toServices=[SERVICE], toPorts=[{"ports": [{"port": "80"}]}]),
        "spec.egress[0].toServices: toServices and ports cannot be in one rule, as Cilium has it",
    ),
    (
        rule("egress", toServices=[SERVICE], toEndpoints=[{}]),
        "spec.egress[0]: toEndpoints and toServices cannot be in one rule: write two",
    ),
    (
        rule(fromRequires=[{}]),
        "spec.ingress[0].fromRequires: Cilium itself has it no more since 1.19",
    ),
    (
        rule(authentication={"mode": "required"}),
        "spec.ingress[0].authentication: mutual authentication is not enforced",
    ),
    (
        rule(fromNodes=[{"matchLabels": {"not a key": "b"}}]),
        "spec.ingress[0].fromNodes[0].matchLabels.not a key: 'not a key' is not the key of a label",
    ),
    (
        rule(fromNodes=[{}], fromEntities=["host"]),
        "spec.ingress[0]: fromEntities and fromNodes cannot be in one rule: write two",
    ),
    (
        rule(fromEndpoints=[{}], fromCIDR=["10.0.0.0/8"]),
        "spec.ingress[0]: fromEndpoints and fromCIDR cannot be in one rule: write two",
    ),
    (
        rule(fromCIDRSet=[{"cidrGroupRef": "g"}]),
        "spec.ingress[0].fromCIDRSet[0].cidrGroupRef: no CiliumCIDRGroup 'g' is here: there is none",
    ),
    (
        rule(fromCIDRSet=[{"cidrGroupRef": "g", "cidr": "10.0.0.0/8"}]),
        "spec.ingress[0].fromCIDRSet[0]: exactly one of cidr, cidrGroupRef, cidrGroupSelector is needed "
        "here, this has cidr and cidrGroupRef",
    ),
    (
        rule(fromCIDRSet=[{"cidr": "10.0.0.0"}]),
        "spec.ingress[0].fromCIDRSet[0].cidr: '10.0.0.0' is not a network: write 10.0.0.0/8 or fd00::/8",
    ),
    (
        rule(fromEndpoints=[{"matchLabels": {"fqdn:a": "b"}}]),
        "spec.ingress[0].fromEndpoints[0].matchLabels.fqdn:a: "
        "'fqdn' is not a source of labels: there is any, k8s, reserved",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "80"}], "rules": {"kafka": [{}]}}]),
        "spec.ingress[0].toPorts[0].rules.kafka: rules of Kafka are not enforced, and Cilium itself has them",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "80"}], "rules": {"l7proto": "r2d2"}}]),
        "spec.ingress[0].toPorts[0].rules.l7proto: parsers of proxies are not here: only HTTP is enforced",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "80"}], "rules": {"htp": []}}]),
        "spec.ingress[0].toPorts[0].rules.htp: no such field: did you mean 'http'?",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "80"}], "terminatingTLS": {}}]),
        "spec.ingress[0].toPorts[0].terminatingTLS: no proxy is here that could do this",
    ),
    (http(path="/a(b"), f"{HTTP}.path: regular expression '/a(b', column 3: a ( without its )"),
    (
        http(method="GET|\\1"),
        f"{HTTP}.method: regular expression 'GET|\\\\1', column 5: \\1 is not supported",
    ),
    (http(host=80), f"{HTTP}.host: 80 is a number, not text"),
    (http(query="a"), f"{HTTP}.query: no such field: "),
    (http(headers=["X-A:"]), f"{HTTP}.headers[0]: 'X-A:' is not the name of a header"),
    (http(headers=[{"X-A": "b"}]), f"{HTTP}.headers[0]: {{'X-A': 'b'}} is a mapping, not text"),
    (http(headerMatches=[{"value": "b"}]), f"{HTTP}.headerMatches[0].name: missing"),
    (
        http(headerMatches=[{"name": "X-A", "value": "b", "mismatch": "REPLACE"}]),
        f"{HTTP}.headerMatches[0].mismatch: headers are not changed: a request that lacks one is denied",
    ),
    (
        http(headerMatches=[{"name": "X-A", "secret": {"name": "s"}}]),
        f"{HTTP}.headerMatches[0].secret: values out of Secrets are not read",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "80", "protocol": "UDP"}], "rules": {"http": [{}]}}]),
        "spec.ingress[0].toPorts[0].ports[0].protocol: requests of HTTP are asked of TCP, not of UDP",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "0", "protocol": "TCP"}], "rules": {"http": [{}]}}]),
        "spec.ingress[0].toPorts[0].ports[0].port: requests are asked of ports by number or name",
    ),
    (
        rule("ingressDeny", toPorts=[{"ports": [{"port": "80"}], "rules": {"http": [{}]}}]),
        "spec.ingressDeny[0].toPorts: a deny cannot ask for requests: allow those that are not meant",
    ),
    (rule(toPorts=[{}]), "spec.ingress[0].toPorts[0].ports: missing"),
    (
        rule(toPorts=[{"ports": [{"port": 80}]}]),
        "spec.ingress[0].toPorts[0].ports[0].port: 80 is a number, not text",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "99999"}]}]),
        "spec.ingress[0].toPorts[0].ports[0].port: 99999 is not a port (1 to 65535)",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "010"}]}]),  # 8, to Cilium
        "spec.ingress[0].toPorts[0].ports[0].port: '010' begins with 0: write 10",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "9" * 5000}]}]),
        "spec.ingress[0].toPorts[0].ports[0].port: '9999999999",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "80", "protocol": "ICMP"}]}]),
        "spec.ingress[0].toPorts[0].ports[0].protocol: 'ICMP' is none of TCP, UDP, SCTP, ANY",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "80"}] * 41}]),
        "spec.ingress[0].toPorts[0].ports: 41 ports: from 1 to 40 are expected",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "80"}]}], icmps=[{"fields": [{"type": 8}]}]),
        "spec.ingress[0].icmps: icmps and toPorts cannot be in one rule: write two",
    ),
    (
        rule(icmps=[{"fields": [{"type": "EchoReqest"}]}]),
        "spec.ingress[0].icmps[0].fields[0].type: 'EchoReqest' is no type of ICMP of IPv4: "
        "did you mean 'EchoRequest' or 'ExtendedEchoRequest' or 'EchoReply'?",
    ),
    (
        rule(icmps=[{"fields": [{"type": 256}]}]),
        "spec.ingress[0].icmps[0].fields[0].type: 256 is no type of ICMP of IPv4: there is",
    ),
    (rule(fromEntities=["World"]), "spec.ingress[0].fromEntities[0]: 'World' is none of all, none, "),
]


@pytest.mark.parametrize(("spec", "said"), CILIUM, ids=[said[:80] for _, said in CILIUM])
def test_cilium_policy_is_refused(spec, said):
    assert refusal("cilium.io/v2", "CiliumNetworkPolicy", spec).startswith(said)


NAMES = [
    (dns(dns=[{}]), f"{DNS}.rules.dns[0]: exactly one of matchName, matchPattern is needed here"),
    (dns(dns=[{"matchName": "*.a"}]), f"{DNS}.rules.dns[0].matchName: a name has no *"),
    (dns(dns=[{"matchPattern": "a b"}]), f"{DNS}.rules.dns[0].matchPattern: 'a b' is not a DNS name"),
    (dns(dns=[{"matchRegex": "a"}]), f"{DNS}.rules.dns[0].matchRegex: no such field"),
    (dns(dns=[{"matchName": "a"}], http=[{}]), f"{DNS}.rules.dns: a port is read as HTTP or as DNS"),
    (
        dns({"port": "53", "protocol": "SCTP"}, dns=[{"matchName": "a"}]),
        f"{DNS}.ports[0].protocol: names are asked for over UDP, not over SCTP",
    ),
    (
        dns({"port": "53", "endPort": 54}, dns=[{"matchName": "a"}]),
        f"{DNS}.ports[0].endPort: names are asked for at ports one by one",
    ),
    (
        dns({"port": "0"}, dns=[{"matchName": "a"}]),
        f"{DNS}.ports[0].port: requests are asked of ports by number or name",
    ),
    (
        rule(toPorts=[{"ports": [{"port": "53"}], "rules": {"dns": [{"matchName": "a"}]}}]),
        "spec.ingress[0].toPorts: names are held to rules where a pod asks for them: write it as egress",
    ),
]


@pytest.mark.parametrize(("spec", "said"), NAMES, ids=[said for _, said in NAMES])
def test_names_to_ask_for_are_refused(spec, said):
    assert refusal("cilium.io/v2", "CiliumNetworkPolicy", spec).startswith(said)


def test_names_to_ask_for():
    spec = dns(dns=[{"matchName": "Bank.Example."}, {"matchPattern": "*.shop.example"}])
    document = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p"}}
    (policy,) = parse_policies(json.dumps(document | {"spec": spec}), "p.json")
    (found,) = policy.rules
    assert [str(each) for each in found.l7] == ["bank.example", "*.shop.example"]
    assert [str(each) for each in found.ports] == ["53 of TCP", "53 of UDP"]
    with pytest.raises(ManifestError, match="nothing here reads what name servers are asked"):
        list(decode_policies(document | {"spec": spec}, "p.json", Around(questions=False)))


def tier(**fields: Any) -> dict[str, Any]:
    return {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}} | fields


def egress(*to: Any, **fields: Any) -> dict[str, Any]:
    return tier(egress=[{"action": "Deny", "to": list(to)} | fields])


EVERYWHERE = {"networks": ["0.0.0.0/0"]}
TIERS = [
    (tier(tier="Default"), "spec.tier: 'Default' is none of Admin, Baseline"),
    (tier(priority=1001), "spec.priority: 1001 is not a priority (0 to 1000)"),
    (
        tier(subject={}),
        "spec.subject: exactly one of namespaces, pods is needed here, this has none",
    ),
    (
        tier(subject={"namespaces": {}, "pods": {"podSelector": {}}}),
        "spec.subject: exactly one of namespaces, pods is needed here, this has namespaces and pods",
    ),
    (egress(), "spec.egress[0].to: 0 items: from 1 to 25 are expected"),
    (egress(*[EVERYWHERE] * 26), "spec.egress[0].to: 26 items: from 1 to 25 are expected"),
    (
        egress({}),
        "spec.egress[0].to[0]: exactly one of namespaces, pods, nodes, networks, domainNames is needed here, "
        "this has none",
    ),
    (
        tier(ingress=[{"action": "Deny", "from": [{"nodes": {}}]}]),
        "spec.ingress[0].from[0].nodes: this API has nodes for egress only",
    ),
    (
        egress({"domainNames": ["a.example"]}),
        "spec.egress[0].to[0].domainNames: this API has domainNames for Accept only",
    ),
    (
        egress({"domainNames": ["a.example"]}, action="Accept"),
        f"spec.egress[0].to[0].domainNames[0]: {FQDN}",
    ),
    (
        egress({"domainNames": ["a*.example"]}, action="Accept"),
        "spec.egress[0].to[0].domainNames[0]: 'a*.example' is not a domain name, nor one after *.",
    ),
    (
        egress({"nodes": {}}, protocols=[{"destinationNamedPort": "http"}]),
        "spec.egress[0].protocols[0].destinationNamedPort: nodes have no ports with names",
    ),
    (egress(EVERYWHERE, action="Allow"), "spec.egress[0].action: 'Allow' is none of Accept, Deny, Pass"),
    (
        egress(EVERYWHERE, protocols=[]),
        "spec.egress[0].protocols: 0 items: from 1 to 25 are expected",
    ),
    (
        egress(EVERYWHERE, protocols=[{"destinationNamedPort": "http"}]),
        "spec.egress[0].protocols[0].destinationNamedPort: networks have no ports with names",
    ),
    (
        egress(EVERYWHERE, protocols=[{"tcp": {"destinationPort": {"range": {"start": 9, "end": 9}}}}]),
        "spec.egress[0].protocols[0].tcp.destinationPort.range.end: "
        "9 is not after the first port of the range, 9",
    ),
    (egress(EVERYWHERE, protocols=[{"tcp": {}}]), "spec.egress[0].protocols[0].tcp.destinationPort: missing"),
]


@pytest.mark.parametrize(("spec", "said"), TIERS, ids=[said for _, said in TIERS])
def test_cluster_network_policy_is_refused(spec, said):
    assert refusal("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", spec) == said


def test_another_version_is_refused_rather_than_passed_over():
    said = refusal("networking.k8s.io/v1beta1", "NetworkPolicy", {})
    assert said == "apiVersion: NetworkPolicy is read as networking.k8s.io/v1"


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("projectcalico.org/v3", "GlobalNetworkPolicy"),
        ("projectcalico.org/v3", "StagedNetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicyList"),
        ("networking.k8s.io/v1", "networkpolicy"),
    ],
)
def test_other_kinds_of_network_policies_are_refused_rather_than_passed_over(version, kind):
    assert refusal(version, kind, {}).startswith("kind: policies of this kind are not read: did you mean '")


CLUSTER = {"tier": "Baseline", "priority": 1, "subject": {"namespaces": {}}}


def test_the_name_of_a_rule_is_shown_as_one_that_can_be_printed():
    for name, said in (("no metadata", "(no metadata)"), ("a\ud800\x1b[31m", r"('a\ud800\x1b[31m')")):
        rules = [{"name": name, "action": "Deny", "from": [{"namespaces": {}}]}]
        document = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
        document |= {"metadata": {"name": "p"}, "spec": CLUSTER | {"ingress": rules}}
        [policy] = parse_policies(json.dumps(document), "p.json")
        assert policy.rules[0].name == f"spec.ingress[0] {said}"


KINDS = [
    ("networking.k8s.io/v1", "NetworkPolicy", {"podSelector": {}}),
    ("cilium.io/v2", "CiliumNetworkPolicy", rule()),
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", rule()),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", CLUSTER),
]


@pytest.mark.parametrize(("version", "kind", "spec"), KINDS, ids=[kind for _, kind, _ in KINDS])
def test_an_annotation_says_that_a_policy_only_looks_on(version, kind, spec):
    def annotated(word: object) -> dict[str, Any]:
        return {"metadata": {"name": "p", "annotations": {"k8sdatapath.io/audit": word, "other": "x"}}}

    for word, audit in (("true", True), ("false", False), (None, False)):
        document = {"apiVersion": version, "kind": kind, "spec": spec, **annotated(word)}
        (policy,) = parse_policies(json.dumps(document))
        assert policy.audit is audit
    said = refusal(version, kind, spec, **annotated("yes"))
    assert said == "metadata.annotations[k8sdatapath.io/audit]: 'yes' is none of true, false"
    assert refusal(version, kind, spec, **annotated(True)).endswith("is true or false, not text")


def test_a_policy_has_one_place(tmp_path):
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}}
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(policy | {"spec": {"podSelector": {}}}))
    assert len(read_policies(tmp_path / "a.json")) == 1
    with pytest.raises(ManifestError, match=r"b\.json.*: it is in .*a\.json.* too"):
        read_policies(tmp_path / "a.json", tmp_path / "b.json")


def test_a_group_that_nobody_has_is_nobody_while_it_may_still_come():
    around = Around(complete=False)
    document = CNP | {"spec": rule(fromCIDRSet=[{"cidrGroupRef": "g"}])}
    [policy] = decode_policies(document, "here", around)
    assert [rule.peers for rule in policy.rules] == [()]
    assert around.asked == {"CiliumCIDRGroup"}
    assert around.missing == [
        "spec.ingress[0].fromCIDRSet[0].cidrGroupRef: no CiliumCIDRGroup 'g' is here: there is none at all"
    ]


def test_objects_of_other_kinds_are_passed_over():
    assert parse_policies("kind: Service\napiVersion: v1\nmetadata: {name: s}") == ()
