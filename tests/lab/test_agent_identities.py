"""An agent whose pods have numbers by their labels: everybody knows them, and they come and go."""

from __future__ import annotations

import signal
from pathlib import Path

from kubernetes.client import ApiClient, Configuration

from k8sdatapath.identity import StoreAllocator
from k8sdatapath.kube.store import KubeStore
from k8sdatapath.model.labels import Labels
from k8sdatapath.net.netns import NetNs
from tests.support.agents import NodeUnderTest, kube_node, two_nodes, write_kubeconfig
from tests.support.api_double import ApiDouble
from tests.support.api_requests import Refusal
from tests.support.policed import a_pod, allow, both, put_pod, reaches, served, start


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


def test_nodes_tell_each_other_through_a_tunnel_who_sends(tmp_path: Path) -> None:
    with (
        two_nodes(f"--kubeconfig={tmp_path / 'config'}", tunnel=True, policy=True) as (one, two),
        one.wires.node.call(lambda: ApiDouble(address=one.addresses[0])) as api,
    ):
        write_kubeconfig(tmp_path / "config", api.url)
        api.put("namespaces", {"metadata": {"name": "shop"}})
        for node in (one, two):
            api.put("nodes", kube_node(node))
        put_pod(api, "client", 2)
        put_pod(api, "other", 4)
        put_pod(api, "web", 3, 2)
        client, other = one.pod("client", 2), one.pod("other", 4)
        two.pod("web", 3)
        allow(api, app="client")
        for node in (one, two):
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


def known(api: ApiDouble, app: str) -> bool:
    """Whether there is a number for the pods of an application."""
    identities = [each["spec"] for each in api.objects("identities").values()]
    return any(f"k8s:app={app};" in each["labels"] and "number" in each for each in identities)


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
