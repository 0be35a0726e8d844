"""An agent that enforces the network policies of its cluster: objects in, real connections refused or not."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8sdatapath.hubble.client import Observed
from k8sdatapath.kube.policy import AUDIT
from k8sdatapath.model.agent_event import AgentEventType, EndpointUpdate, IpcacheUpdate, PolicyUpdate
from k8sdatapath.net.netns import NetNs
from tests.api.graph import ROOT
from tests.support.agents import NodeUnderTest, Server, ask, kube_node, write
from tests.support.api_double import ApiDouble
from tests.support.etcd import Etcd
from tests.support.name_server import NameServer, question
from tests.support.policed import SIX, WEB, a_pod, allow, both, only, put_pod, reaches, served, start


@pytest.mark.parametrize("mode", ["crd", "etcd", "memory"])
def test_policies_of_the_cluster_are_enforced(tmp_path: Path, mode: str) -> None:
    store = Etcd(tmp_path, tls=True)
    files = {"certFile": str(store.certificate), "keyFile": str(store.key), "caFile": str(store.certificate)}
    told: dict[str, Any] = {"etcd": {"endpoints": [store.url], **files}} if mode == "etcd" else {}
    with served(tmp_path, identityAllocationMode=mode, **told) as (node, api), ExitStack() as own:
        own.callback(store.close)
        if mode == "etcd":
            node.wires.node.call(store.up)
        client, other = start(node, api)
        assert both(other) == {True}
        allow(api, app="client")
        node.until(lambda: both(other) == {False})
        assert both(client) == {True}
        assert (len(api.objects("identities")) > 0) == (mode == "crd")

        put_pod(api, "other", 4, app="client")  # as if it were the one that may
        node.until(lambda: both(other) == {True})
        put_pod(api, "other", 4)
        node.until(lambda: both(other) == {False})

        api.delete("networkpolicies", "shop", "web")
        node.until(lambda: both(other) == {True})
        node.until(lambda: "k8sdatapath_policies 0.0" in node.probe("metrics")[1])  # after all is in force
        assert "k8sdatapath_policy_pods 3.0" in node.probe("metrics")[1]


def test_policies_of_files_are_enforced_and_followed(tmp_path: Path) -> None:
    pods = [a_pod("client", 2), a_pod("web", 3), a_pod("other", 4)]
    write(tmp_path, "pods", [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}, *pods])
    where = tmp_path / "hubble.sock"
    options: dict[str, Any] = {"policy": True, "identityAllocationMode": "memory"}
    options["hubble"] = {"enabled": True, "socketPath": str(where)}
    with NodeUnderTest([f"--source={tmp_path}"], **options) as node:
        client, web, other = (node.pod(each["metadata"]["name"], at) for at, each in enumerate(pods, 2))
        write(tmp_path, "web", [only(app="client")])
        node.start()
        node.until(lambda: (both(client), both(other)) == ({True}, {False}))
        write(tmp_path, "web", [only(app="other")])
        node.until(lambda: (both(client), both(other)) == ({False}, {True}))
        write(tmp_path, "web", [{**only(app="client"), "spec": {"podSelector": 1}}])
        node.until(lambda: any("podSelector" in each for each in node.messages()))
        assert (both(client), both(other)) == ({False}, {True})
        (tmp_path / "web.yaml").unlink()
        node.until(lambda: both(client) == {True})
        assert both(web) == {True}
        node.until(lambda: done(where)[-1] == "POLICY_DELETED shop/web")
        told = done(where)
        assert told[0] == "AGENT_STARTED "
        assert told.count("POLICY_UPDATED shop/web") == 2
        assert {"ENDPOINT_CREATED shop/web", f"IPCACHE_UPSERTED shop/web {WEB}/32"} <= set(told)


def done(where: Path) -> list[str]:
    """What an agent says it has done."""
    with Observed(f"unix://{where}") as server:
        events = [each.agent_event for each in server.agent_events()]
    assert all(events)
    return [f"{AgentEventType(each.type).name} {subject(each.notification)}" for each in events if each]


def subject(told: Any) -> str:
    match told:
        case PolicyUpdate(labels=labels):
            parts = dict(label.rpartition(".")[2].split("=", 1) for label in labels)
            return f"{parts['namespace']}/{parts['name']}"
        case EndpointUpdate(namespace=namespace, pod_name=name):
            return f"{namespace}/{name}"
        case IpcacheUpdate(cidr=network, namespace=namespace, pod_name=name):
            return f"{namespace}/{name} {network}"
    return ""


def test_policies_for_the_node_itself_follow_its_labels(tmp_path: Path) -> None:
    policy = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "nodes"},
        "spec": {
            "nodeSelector": {"matchLabels": {"guarded": "yes"}},
            "ingress": [{"fromEntities": ["cluster"]}],
        },
    }
    firewall = {"enabled": True, "incoming": ["9090/TCP"], "outgoing": []}
    options = {"policy": True, "identityAllocationMode": "memory", "hostFirewall": firewall}
    with NodeUnderTest([f"--source={tmp_path}"], **options) as node, ExitStack() as own:
        for port in (8080, 9090):
            own.enter_context(closing(Server(node.wires.node, "node", port=port)))
        write(tmp_path, "policy", [policy])

        def label(guarded: str) -> None:
            one = kube_node(node)
            one["metadata"]["labels"] = {"guarded": guarded}
            write(tmp_path, "node", [one])

        def open_ports(port: int) -> set[bool]:
            return {reaches(node.outside, each, port, "node") for each in node.addresses}

        label("yes")
        node.start()
        node.until(lambda: open_ports(8080) == {False})
        assert open_ports(9090) == {True}
        label("no")
        node.until(lambda: open_ports(8080) == {True})
        label("yes")
        node.until(lambda: open_ports(8080) == {False})
        node.stop()
        assert open_ports(8080) == {False}  # the pins hold
        node.start()
        assert open_ports(8080) == {False}


def test_what_was_recorded_is_enforced_when_it_is_played_back(
    cluster: tuple[NodeUnderTest, ApiDouble], tmp_path: Path
) -> None:
    node, api = cluster
    recording = tmp_path / "cluster.jsonl"
    node.arguments.append(f"--record={recording}")
    client, other = start(node, api)
    allow(api, app="client")
    node.until(lambda: both(other) == {False})
    node.stop()
    assert node.cleanup().returncode == 0
    api.down()
    node.arguments = [each for each in node.arguments if not each.startswith(("--kubeconfig", "--record"))]
    told = json.loads(node.config.read_text())
    node.config.write_text(json.dumps({**told, "identityAllocationMode": "memory"}))
    node.start(f"--replay={recording}")
    node.until(lambda: (both(client), both(other)) == ({True}, {False}))


def test_no_connection_that_is_allowed_meets_the_start_of_another_process(
    cluster: tuple[NodeUnderTest, ApiDouble],
) -> None:
    """Pods are taken over one after the other; policies of the first are about those that follow."""
    node, api = cluster
    client, other = start(node, api)
    allow(api, app="client")
    node.until(lambda: both(other) == {False})
    over, made, sent_again = threading.Event(), Counter[str](), Counter[str]()

    def dial() -> None:
        while not over.is_set():
            for address in (WEB, SIX):
                with socket.create_connection((address, 8080), timeout=30) as connection:
                    made[connection.recv(100).decode()] += 1
                    about = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                    sent_again[address] += memoryview(about).cast("I")[25]  # tcpi_total_retrans

    dialling = threading.Thread(target=client.call, args=(dial,))
    dialling.start()
    try:
        for _ in range(3):
            node.stop(signal.SIGKILL)
            node.start()
    finally:
        over.set()
        dialling.join()
    assert made.keys() == {"web"}
    assert sent_again == {WEB: 0, SIX: 0}


def test_killed_and_started_again_it_keeps_enforcing(cluster: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = cluster
    client, other = start(node, api)
    allow(api, app="client")
    node.until(lambda: both(other) == {False})
    node.stop(signal.SIGKILL)
    assert (both(client), both(other)) == ({True}, {False})
    node.launch()
    deadline = time.monotonic() + 60
    while node.probe("readyz")[0] != 200:
        assert time.monotonic() < deadline, node.messages()
        assert (both(client), both(other)) == ({True}, {False})
    assert (both(client), both(other)) == ({True}, {False})
    node.stop(signal.SIGKILL)
    allow(api, app="other")
    node.start()
    node.until(lambda: (both(client), both(other)) == ({False}, {True}))


def test_policies_look_on_and_denials_are_told_as_its_file_says(
    cluster: tuple[NodeUnderTest, ApiDouble],
) -> None:
    node, api = cluster
    node.config.write_text(json.dumps({**json.loads(node.config.read_text()), "policyAuditMode": True}))
    client, other = start(node, api)
    allow(api, app="client")
    node.until(lambda: "k8sdatapath_policies 1.0" in node.probe("metrics")[1])
    assert both(other) == both(client) == {True}
    metrics = node.probe("metrics")[1]
    assert 'policy_endpoint_enforcement_status{enforcement="audit-ingress"} 1.0' in metrics
    node.tell_again(policyAuditMode=False, policyDenyResponse="icmp")
    node.until(lambda: both(other) == {False})
    metrics = node.probe("metrics")[1]
    for word, pods in (("ingress", 1), ("none", 2), ("audit-ingress", 0)):
        assert f'policy_endpoint_enforcement_status{{enforcement="{word}"}} {pods}.0' in metrics
    packets = 'k8sdatapath_policy_packets_total{action="deny",direction="ingress"} '
    assert float(metrics.partition(packets)[2].split()[0]) > 0
    assert both(client) == {True}
    with pytest.raises(ConnectionRefusedError):
        ask(other, WEB, 8080, timeout=10)


def test_policies_only_look_on_at_a_pod_that_is_annotated_so(tmp_path: Path) -> None:
    with served(tmp_path, policyAuditPods=True) as (node, api):
        client, other = start(node, api)
        web = a_pod("web", 3)
        staged = {**web, "metadata": {**web["metadata"], "annotations": {AUDIT: "true"}}}
        allow(api, app="client")
        node.until(lambda: both(other) == {False})
        api.put("pods", staged)
        node.until(lambda: both(other) == {True})
        node.stop(signal.SIGKILL)
        node.start()
        assert both(other) == both(client) == {True}
        api.put("pods", web)
        node.until(lambda: both(other) == {False})
        assert both(client) == {True}


CILIUM = {
    "endpointSelector": {"matchLabels": {"app": "web"}},
    "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}],
}
SHOP = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
TIER = {
    "tier": "Admin",
    "priority": 7,
    "subject": {"pods": {**SHOP, "podSelector": {"matchLabels": {"app": "web"}}}},
    "ingress": [
        {"action": "Deny", "from": [{"pods": {**SHOP, "podSelector": {"matchLabels": {"app": "other"}}}}]}
    ],
}


@pytest.mark.parametrize(
    ("group", "kind", "plural", "spec"),
    [
        ("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies", CILIUM),
        ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", CILIUM),
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies", TIER),
    ],
    ids=lambda each: each if str(each).endswith("ies") else "",
)
def test_kinds_of_policies_that_the_cluster_has_are_followed(
    cluster: tuple[NodeUnderTest, ApiDouble], group: str, kind: str, plural: str, spec: dict[str, Any]
) -> None:
    node, api = cluster
    api.kinds[group, plural] = kind
    client, other = start(node, api)
    metadata = {"name": "web"} | ({"namespace": "shop"} if kind == "CiliumNetworkPolicy" else {})
    api.put(plural, {"apiVersion": group, "kind": kind, "metadata": metadata, "spec": spec})
    node.until(lambda: both(other) == {False})
    assert both(client) == {True}
    api.delete(plural, metadata.get("namespace", ""), "web")
    node.until(lambda: both(other) == {True})


NAMED = {
    "endpointSelector": {"matchLabels": {"app": "client"}},
    "egress": [
        {"toEntities": ["world"], "toPorts": [{"ports": [{"port": "53", "protocol": "UDP"}]}]},
        {"toFQDNs": [{"matchPattern": "*.bank.example"}]},
    ],
}


def test_what_a_name_server_answers_may_be_dialled(cluster: tuple[NodeUnderTest, ApiDouble]) -> None:
    """Also while another agent begins, and after that: nobody has to ask it again."""
    node, api = cluster
    group, plural = "cilium.io/v2", "ciliumnetworkpolicies"
    api.kinds[group, plural] = "CiliumNetworkPolicy"
    client, _ = start(node, api)
    metadata = {"name": "client", "namespace": "shop"}
    api.put(plural, {"apiVersion": group, "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": NAMED})
    node.until(lambda: both(client) == {False})
    banks = {"A": "192.0.2.101", "AAAA": "2001:db8:2::101"}
    families = {"A": socket.AF_INET, "AAAA": socket.AF_INET6}
    zone = {"www.bank.example": list(banks.values())}
    with closing(Server(node.outside, "bank")), NameServer(node.outside, zone):
        for kind, bank in banks.items():
            with pytest.raises(TimeoutError):
                ask(client, bank, 8080, timeout=0.4)
            with client.call(socket.socket, families[kind], socket.SOCK_DGRAM) as asking:
                asking.settimeout(5)
                asking.sendto(question("www.bank.example", kind), (bank, 53))
                asking.recv(4096)
            assert ask(client, bank, 8080, timeout=30) == "bank"  # the first packet may be too early
        with ExitStack() as own:
            held = [own.enter_context(closing(Held(node, client, bank))) for bank in banks.values()]
            node.stop(signal.SIGKILL)
            node.launch()
            deadline = time.monotonic() + 60
            while "ready" not in node.messages():
                assert time.monotonic() < deadline, node.messages()
                assert all(each.goes_on() for each in held)
                assert [ask(client, bank, 8080) for bank in banks.values()] == ["bank"] * 2
            node.until(lambda: node.probe("readyz")[0] == 200)
            assert all(each.goes_on() for each in held)
            assert [ask(client, bank, 8080) for bank in banks.values()] == ["bank"] * 2


class Held:
    """A connection of a pod to the outside."""

    def __init__(self, node: NodeUnderTest, client: NetNs, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with node.outside.call(socket.create_server, (address, 0), family=family) as listener:
            self._ends = [client.call(socket.create_connection, listener.getsockname()[:2], timeout=5)]
            self._ends.append(listener.accept()[0])

    def goes_on(self) -> bool:
        self._ends[0].send(b"?")
        self._ends[1].settimeout(5)
        return self._ends[1].recv(1) == b"?"

    def close(self) -> None:
        for each in self._ends:
            each.close()


def test_events_tell_of_policies_that_cannot_be_enforced(tmp_path: Path) -> None:
    with served(tmp_path, writeEvents=True) as (node, api):
        start(node, api)
        allow(api, app="client")
        rule = {"ports": [{"port": "no_such_name"}]}
        api.put(
            "networkpolicies",
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"namespace": "shop", "name": "wrong"},
                "spec": {"podSelector": {}, "ingress": [rule]},
            },
        )
        node.until(lambda: any(name == "wrong" for _, name, _ in named(api)))
        (told,) = (body for _, _, body in named(api))
        assert (told["type"], told["reason"]) == ("Warning", "Error")
        assert "spec.ingress[0].ports[0].port" in told["message"]


def named(api: ApiDouble) -> list[tuple[str, str, dict[str, Any]]]:
    """Events about policies."""
    return [
        (method, body["involvedObject"]["name"], body)
        for method, _, body in api.written
        if body.get("involvedObject", {}).get("apiVersion") == "networking.k8s.io/v1"
    ]


def test_rights_in_deploy_are_what_is_asked_for(cluster: tuple[NodeUnderTest, ApiDouble]) -> None:
    node, api = cluster
    written: set[tuple[str, str, str]] = set()
    verbs = {"POST": "create", "PUT": "update", "DELETE": "delete"}

    def note(method: str, path: str) -> None:
        written.add(("k8sdatapath.io", path.strip("/").split("/")[3], verbs[method]))

    api.refuse_write = note
    start(node, api)
    watched = {"networkpolicies", "namespaces", "pods", "nodes", "services", "endpointslices"}
    node.until(lambda: watched <= {each.plural for each in api.requests if each.watch})
    asked = set(written)
    for query in api.requests:
        group = query.api.rpartition("/")[0]
        if query.plural in ("v2", "v1alpha2"):  # what kinds there are may be asked by everybody
            continue
        if query.api.count("/") == 2:  # an object by its name
            group, _, plural = query.api.split("/")
            asked.add((group, plural, "get"))
        else:
            asked.add((group, query.plural, "watch" if query.watch else "list"))
    allowed = set()
    for file in "base/rbac.yaml", "policy/rbac.yaml":
        for role in yaml.safe_load_all((ROOT / "deploy" / file).read_text()):
            for rule in role.get("rules", ()) if role["kind"] == "ClusterRole" else ():
                for group in rule["apiGroups"]:
                    allowed |= {(group, each, verb) for each in rule["resources"] for verb in rule["verbs"]}
    assert asked <= allowed
    assert {each for each in allowed - asked if each[0] != "cilium.io"} <= RARELY


RARELY = {
    ("k8sdatapath.io", "identitynumbers", "list"),  # when tries to find a free one have failed
    ("k8sdatapath.io", "identitynumbers", "get"),
    ("k8sdatapath.io", "identitynumbers", "delete"),  # of one that another node was faster to need
    ("k8sdatapath.io", "identitynumbers", "update"),  # when nobody uses it any more
    ("k8sdatapath.io", "identities", "delete"),
    ("k8sdatapath.io", "identityuses", "list"),
    ("k8sdatapath.io", "identityuses", "delete"),  # of a node that has gone
    ("k8sdatapath.io", "identityuses", "get"),  # after a new start
    ("policy.networking.k8s.io", "clusternetworkpolicies", "list"),
    ("policy.networking.k8s.io", "clusternetworkpolicies", "watch"),
}
