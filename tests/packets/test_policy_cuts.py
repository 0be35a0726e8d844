"""A plan on a node lists the connections that the change would end, and those are ended by it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import Workload
from k8sdatapath.net.packet import icmp_echo, tcp
from tests.packets.checkpoint import Checkpoint, checkpoint

pytestmark = pytest.mark.packets

WEB = Workload.pod("shop/web", {"app": "web"}, addresses=["10.244.1.2", "fd00:10:244:1::2"])
API = Workload.pod("shop/api", {"app": "api"}, addresses=["10.244.1.3", "fd00:10:244:1::3"])
FAR = Workload.pod("shop/far", {"app": "far"}, addresses=["10.244.2.2", "fd00:10:244:2::2"])
OUTSIDE = {4: "192.0.2.9", 6: "2001:db8::9"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def policies(*ingress: str) -> tuple[Policy, ...]:
    return parse_policies(f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: api, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: api}}}}
  ingress: [{", ".join(ingress)}]
""")


def app(name: str) -> str:
    return f"{{from: [{{podSelector: {{matchLabels: {{app: {name}}}}}}}]}}"


def at(workload: Workload, family: int) -> str:
    return str(workload.addresses[family == 6])


@pytest.fixture(scope="module")
def shared() -> Iterator[Checkpoint]:
    with checkpoint(WEB, API) as made:
        made.learn(FAR)
        yield made


@pytest.fixture
def node(shared: Checkpoint) -> Checkpoint:
    shared.policy.apply(())
    shared.talks.delete_many(list(shared.talks))
    return shared


def dial(node: Checkpoint, client: str, server: str, flags: str = "S", port: int = 40000) -> bool:
    return node.passes(tcp(client, server, port, 8080, flags), client, server)


def cut(node: Checkpoint, wanted: tuple[Policy, ...]) -> list[tuple[str, str, int, int]]:
    connections = node.policy.plan(wanted).connections
    return [(each.source, each.destination, each.source_port, each.port) for each in connections]


@FAMILIES
def test_what_is_listed_is_ended_and_nothing_else(node: Checkpoint, family: int) -> None:
    server = at(API, family)
    clients = {"shop/web": at(WEB, family), "shop/far": at(FAR, family), "": OUTSIDE[family]}
    for client in clients.values():
        assert dial(node, client, server)
    assert dial(node, server, clients["shop/web"], port=50000)  # the other way round
    listed = cut(node, policies(app("far")))
    assert sorted(listed) == [("", "shop/api", 40000, 8080), ("shop/web", "shop/api", 40000, 8080)]
    node.policy.apply(policies(app("far")))
    ended = {name for name, client in clients.items() if not dial(node, client, server, "A")}
    assert ended == {name for name, *_ in listed}
    assert dial(node, server, clients["shop/web"], "A", 50000)
    assert cut(node, policies(app("far"))) == []


@FAMILIES
def test_the_reason_and_the_ends_are_told(node: Checkpoint, family: int) -> None:
    assert dial(node, OUTSIDE[family], at(API, family))
    plan = node.policy.plan(policies())
    (one,) = plan.connections
    end = OUTSIDE[family] if family == 4 else f"[{OUTSIDE[family]}]"
    assert str(one) == (
        f"{end}:40000 -> shop/api ({at(API, family)}) at 8080 of TCP: "
        "ingress denied by default: NetworkPolicy shop/api isolates, and no rule allows it"
    )
    assert f"ends {one}" in str(plan)


@FAMILIES
def test_what_was_kept_is_ended_by_the_next_change_and_so_listed(node: Checkpoint, family: int) -> None:
    client, server = at(FAR, family), at(API, family)
    assert dial(node, client, server)
    node.policy.upsert(*policies(), existing="keep")
    assert dial(node, client, server, "A")
    assert cut(node, policies()) == []  # that is what there is
    assert cut(node, policies(app("web"))) == [("shop/far", "shop/api", 40000, 8080)]
    assert cut(node, policies(app("far"))) == []
    node.policy.apply(policies(app("web")))
    assert not dial(node, client, server, "A")
    assert cut(node, policies(app("db"))) == []  # it is over


@FAMILIES
def test_pods_elsewhere_judge_for_themselves_and_what_has_ended_is_not_listed(
    node: Checkpoint, family: int
) -> None:
    web, far = at(WEB, family), at(FAR, family)
    assert dial(node, web, far)
    assert dial(node, far, at(API, family))
    assert dial(node, far, at(API, family), "FA")
    (closed,) = parse_policies("""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: all, namespace: shop}
spec: {endpointSelector: {}, ingress: [{}]}
""")
    assert cut(node, (closed,)) == []
    node.policy.audit = True
    assert dial(node, far, at(API, family), port=40002)
    assert cut(node, (closed,)) == []
    node.policy.audit = False
    assert cut(node, (closed,)) == [("shop/far", "shop/api", 40002, 8080)]


@FAMILIES
def test_an_echo_is_listed_by_its_type(node: Checkpoint, family: int) -> None:
    web, api = at(WEB, family), at(API, family)
    assert node.passes(icmp_echo(web, api), web, api)
    assert cut(node, policies()) == [
        ("shop/web", "shop/api", cut(node, policies())[0][2], 8 if family == 4 else 128)
    ]
