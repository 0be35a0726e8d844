"""An agent that enforces the network policies of its cluster: objects in, real connections refused or not."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient, Configuration

from k8sdatapath.identity import StoreAllocator
from k8sdatapath.kube.store import KubeStore
from k8sdatapath.model.labels import Labels
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from tests.api.graph import ROOT
from tests.lab.test_agent import kube_node
from tests.support.agents import NodeUnderTest, Server, ask, plugin, write, write_kubeconfig
from tests.support.api_double import ApiDouble, Refusal
from tests.support.etcd import Etcd
from tests.support.name_server import NameServer, question

WEB, SIX = "10.1.1.3", "fd00:1:1::3"


@contextmanager
def served(tmp_path: Path, **options: Any) -> Iterator[tuple[NodeUnderTest, ApiDouble]]:
    with (
        NodeUnderTest([f"--kubeconfig={tmp_path / 'config'}"], policy=True, **options) as node,
        node.wires.node.call(ApiDouble) as api,
    ):
        write_kubeconfig(tmp_path / "config", api.url)
        api.put("namespaces", {"metadata": {"name": "shop"}})
        yield node, api


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[NodeUnderTest, ApiDouble]]:
    with served(tmp_path) as found:
        yield found


def a_pod(
    name: str, last: int, number: int = 1, *, addresses: Sequence[str] = (), **labels: str
) -> dict[str, Any]:
    addresses = addresses or (f"10.1.{number}.{last}", f"fd00:1:{number}::{last}")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": name} | labels},
        "spec": {"nodeName": f"node-{number}", "containers": []},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": each} for each in addresses],
        },
    }


def put_pod(api: ApiDouble, *where: Any, **labels: Any) -> None:
    api.put("pods", a_pod(*where, **labels))


def only(**labels: str) -> dict[str, Any]:
    """Only who has these labels may reach ``web``."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": labels}}], "ports": [{"port": 8080}]}],
        },
    }


def allow(api: ApiDouble, **labels: str) -> None:
    api.put("networkpolicies", only(**labels))


def reaches(client: NetNs, address: str = WEB, port: int = 8080, who: str = "web") -> bool:
    try:
        return ask(client, address, port, timeout=0.4) == who
    except OSError:
        return False


def both(client: NetNs) -> set[bool]:
    return {reaches(client), reaches(client, SIX)}


def start(node: NodeUnderTest, api: ApiDouble) -> tuple[NetNs, NetNs]:
    """Two clients of a pod that serves."""
    put_pod(api, "client", 2)
    put_pod(api, "web", 3)
    put_pod(api, "other", 4)
    client = node.pod("client", 2)
    node.pod("web", 3)
    other = node.pod("other", 4)
    node.start()
    node.until(lambda: both(client) == {True})
    return client, other


@pytest.mark.parametrize("mode", ["crd", "etcd", "memory"])
def test_policies_of_the_cluster_are_enforced(tmp_path: Path, mode: str) -> None:
    store = Etcd(tmp_path, tls=True)
    files = {"certFile": str(store.certificate), "keyFile": str(store.key), "caFile": str(store.certificate)}
    told: dict[str, Any] = {"etcd": {"endpoints": [store.url], **files}} if mode == "etcd" else {}
    with served(tmp_path, identityAllocationMode=mode, **told) as (node, api), ExitStack() as own:
        if mode == "etcd":
            own.callback(store.down)
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
        metrics = node.probe("metrics")[1]
        assert "k8sdatapath_policy_pods 3.0" in metrics
        assert "k8sdatapath_policies 0.0" in metrics


def test_policies_of_files_are_enforced_and_followed(tmp_path: Path) -> None:
    pods = [a_pod("client", 2), a_pod("web", 3), a_pod("other", 4)]
    write(tmp_path, "pods", [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}, *pods])
    options = {"policy": True, "identityAllocationMode": "memory"}
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


def test_a_pod_nobody_knows_is_cut_off_until_it_is_known(
    cluster: tuple[NodeUnderTest, ApiDouble],
) -> None:
    node, api = cluster
    start(node, api)
    late = node.pod("late", 5)
    node.until(lambda: any("cut off" in line["message"] and line["device"] == "vlate" for line in node.log))
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
    node.until(
        lambda: any("cut off" in each["message"] and each["device"] == "vearly" for each in told(node))
    )
    for address in WEB, "10.1.9.1":
        with pytest.raises(TimeoutError):
            ask(early, address, 8080, timeout=0.4)
    assert "from_pod-vearly" in node.pins.links


def told(node: NodeUnderTest) -> list[dict[str, Any]]:
    """What was logged of devices."""
    return [each for each in node.log if "device" in each]


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


def test_without_a_store_who_is_known_goes_on_and_who_is_new_waits(
    cluster: tuple[NodeUnderTest, ApiDouble],
) -> None:
    node, api = cluster
    client, other = start(node, api)
    allow(api, app="client")
    node.until(lambda: both(other) == {False})

    def refuse(method: str, path: str) -> None:
        raise Refusal(503, "ServiceUnavailable")

    api.refuse_write = refuse
    put_pod(api, "late", 5, tier="new")
    late = node.pod("late", 5)
    node.until(lambda: "wait for a number, such as shop/late" in node.probe("readyz")[1])
    assert (both(client), both(other), both(late)) == ({True}, {False}, {False})
    allow(api, tier="new")  # policies go on being followed
    node.until(lambda: both(client) == {False})
    assert both(late) == {False}
    api.refuse_write = lambda method, path: None
    node.until(lambda: both(late) == {True})


def test_pods_of_other_nodes_are_who_their_nodes_say(cluster: tuple[NodeUnderTest, ApiDouble]) -> None:
    """The world outside has the address of a pod elsewhere."""
    node, api = cluster
    start(node, api)
    assert reaches(node.outside)
    allow(api, app="far")
    node.until(lambda: not reaches(node.outside))
    put_pod(api, "far", 9, 2, addresses=("192.0.2.101", "2001:db8:2::101"))
    known = [each["spec"]["labels"] for each in api.objects("identities").values()]
    labels = Labels.parse(next(each for each in known if "app=web" in each).replace("app=web", "app=far"))
    assert not reaches(node.outside)  # nobody has told its number
    with (
        KubeStore(ApiClient(Configuration(host=api.url))) as store,
        StoreAllocator(store, "node-2", beats=False) as shared,
    ):
        node.wires.node.call(shared.acquire, labels)
    node.until(lambda: both(node.outside) == {True})


def test_policies_look_on_and_denials_are_told_as_its_file_says(
    cluster: tuple[NodeUnderTest, ApiDouble],
) -> None:
    node, api = cluster
    node.config.write_text(json.dumps({**json.loads(node.config.read_text()), "policyAuditMode": True}))
    client, other = start(node, api)
    allow(api, app="client")
    node.until(lambda: "k8sdatapath_policies 1.0" in node.probe("metrics")[1])
    assert both(other) == both(client) == {True}
    node.tell_again(policyAuditMode=False, policyDenyResponse="icmp")
    node.until(lambda: both(other) == {False})
    assert both(client) == {True}
    with pytest.raises(ConnectionRefusedError):
        ask(other, WEB, 8080, timeout=10)


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
            assert ask(client, bank, 8080) == "bank"


def test_nodes_tell_each_other_through_a_tunnel_who_sends(tmp_path: Path) -> None:
    with ExitStack() as stack:
        nodes: list[NodeUnderTest] = []
        for number in (1, 2):
            told = {"routingMode": "tunnel", "tunnelAddresses": [f"10.1.{number}.1", f"fd00:1:{number}::1"]}
            outside = nodes[0].outside if nodes else None
            source = [f"--kubeconfig={tmp_path / 'config'}"]
            made = NodeUnderTest(source, number=number, outside=outside, policy=True, **told)
            nodes.append(stack.enter_context(made))
        one, two = nodes
        api = one.wires.node.call(lambda: ApiDouble(address=one.addresses[0]))
        stack.enter_context(api)
        write_kubeconfig(tmp_path / "config", api.url)
        api.put("namespaces", {"metadata": {"name": "shop"}})
        for node in nodes:
            api.put("nodes", kube_node(node))
        put_pod(api, "client", 2)
        put_pod(api, "other", 4)
        put_pod(api, "web", 3, 2)
        client, other = one.pod("client", 2), one.pod("other", 4)
        two.pod("web", 3)
        allow(api, app="client")
        for node in nodes:
            node.start()

        def reached(pod: NetNs) -> set[bool]:
            return {reaches(pod, "10.1.2.3"), reaches(pod, "fd00:1:2::3")}

        two.until(lambda: (reached(client), reached(other)) == ({True}, {False}))
        assert not reaches(one.wires.node, "10.1.2.3")  # a node is not let in for its pods
        put_pod(api, "other", 4, app="client")
        two.until(lambda: reached(other) == {True})
        allow(api, app="other")
        two.until(lambda: (reached(client), reached(other)) == ({False}, {False}))
        one.stop(signal.SIGKILL)
        allow(api, app="client")  # the other node follows; what the first one's pods are stays known
        two.until(lambda: (reached(client), reached(other)) == ({True}, {True}))


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


def known(api: ApiDouble, app: str) -> bool:
    """Whether there is a number for the pods of an application."""
    return any(f"k8s:app={app};" in each["spec"]["labels"] for each in api.objects("identities").values())


def test_numbers_are_there_before_the_pods_of_a_deployment(tmp_path: Path) -> None:
    with served(tmp_path, identityPrewarming=True) as (node, api):
        makers = [("apps/v1", kind) for kind in ("Deployment", "StatefulSet", "DaemonSet")]
        api.kinds |= {(group, f"{kind.lower()}s"): kind for group, kind in (*makers, ("batch/v1", "Job"))}
        client, _ = start(node, api)
        allow(api, app="late")
        node.until(lambda: not reaches(client))
        pod = a_pod("late", 5)
        template = {
            "metadata": {"labels": {**pod["metadata"]["labels"], "pod-template-hash": "1"}},
            "spec": {},
        }
        deployment = {"kind": "Deployment", "metadata": {"namespace": "shop", "name": "late"}}
        api.put("deployments", {"apiVersion": "apps/v1", **deployment, "spec": {"template": template}})
        node.until(lambda: known(api, "late"))

        def refuse(method: str, path: str) -> None:
            raise Refusal(503, "ServiceUnavailable")

        api.refuse_write = refuse
        api.put("pods", pod)
        late = node.pod("late", 5)
        node.until(lambda: both(late) == {True})


def test_numbers_that_nobody_uses_are_taken_back(tmp_path: Path) -> None:
    collecting = {"interval": 0.1, "heartbeatTimeout": 30, "grace": 0.2, "quarantine": 0.2}
    with served(tmp_path, identityGC=collecting) as (node, api):
        start(node, api)
        put_pod(api, "passing", 9)
        node.until(lambda: known(api, "passing"))
        numbers = len(api.objects("identitynumbers"))
        api.delete("pods", "shop", "passing")
        node.until(lambda: not known(api, "passing"))
        node.until(lambda: len(api.objects("identitynumbers")) == numbers - 1)
        assert all(known(api, app) for app in ("client", "web", "other"))


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
