"""Policies between real sockets: the same pods, on one node and on two, routed and through a tunnel."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from k8sdatapath import Exposure, Frontend, FrontendKind, Lab, Service
from k8sdatapath.datapath.identity_policy import IdentityPolicy
from k8sdatapath.errors import LabError, ModelError
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.lab.addressing import POD_GATEWAY_MAC
from k8sdatapath.lab.host import Host
from k8sdatapath.lab.lab import Pod
from k8sdatapath.model.policy import Action
from k8sdatapath.net.packet import udp
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run

pytestmark = pytest.mark.lab

PAYMENTS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: payments, namespace: payments}
spec:
  podSelector: {matchLabels: {app: payments-api}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: frontend}}
      podSelector: {matchLabels: {app: checkout-service}}
    ports: [{port: 8080}]
"""
NOBODY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: payments, namespace: payments}
spec: {podSelector: {matchLabels: {app: payments-api}}}
"""
NODES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: nodes, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payments-api}}
  ingress: [{fromEntities: [remote-node]}]
"""
VIPS = {4: "10.96.0.20", 6: "fd00:10:96::20"}


def url(address: object, port: int) -> str:
    return f"http://[{address}]:{port}/" if ":" in str(address) else f"http://{address}:{port}/"


def reaches(client: Host, address: object, port: int, *, timeout: float = 10.0) -> bool:
    """Whether an answer comes."""
    try:
        return client.get(url(address, port), timeout=timeout).status == 200
    except TimeoutError:
        return False


def denied(client: Host, address: object, port: int) -> bool:
    """Silence is a denial."""
    return not reaches(client, address, port, timeout=0.5)


@pytest.fixture(
    scope="module",
    params=[("native", 1), ("native", 2), ("vxlan", 2)],
    ids=lambda each: f"{each[0]}-{each[1]}",
)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    routing, nodes = request.param
    with Lab.start(nodes=nodes, routing=routing, policy=True) as lab:
        lab.pod("checkout", labels={"app": "checkout-service"}, namespace="frontend")
        lab.pod("cart", labels={"app": "cart"}, namespace="frontend")
        lab.pod("impostor", labels={"app": "checkout-service"}, namespace="elsewhere")
        api = lab.pod("api", lab.nodes[-1], labels={"app": "payments-api"}, namespace="payments")
        for port in (8080, 9090):
            api.serve_http(port, "paid")
        api.serve_udp(8080)
        lab.external("outside")
        for node in lab.nodes:
            node.services.upsert(*(Service(VIPS[f], 80, backends=[api.at(8080, f)]) for f in VIPS))
        lab.apply(PAYMENTS)
        yield lab


def pod(lab: Lab, name: str) -> Pod:
    return next(each for node in lab.nodes for each in node.pods if each.name == name)


def test_the_named_peer_reaches_the_named_port(lab: Lab) -> None:
    api, checkout = pod(lab, "api"), pod(lab, "checkout")
    for family, address in zip((4, 6), api.addresses, strict=True):
        assert checkout.get(url(address, 8080)).text == "paid"
        assert checkout.get(url(VIPS[family], 80)).text == "paid"  # judged as the backend that it becomes
        assert denied(checkout, address, 9090)
        with pytest.raises(TimeoutError):
            checkout.udp(address, 8080, b"only TCP was named", timeout=0.5)


@pytest.mark.parametrize("who", ["cart", "impostor"])
def test_all_other_pods_get_nothing(lab: Lab, who: str) -> None:
    for family, address in zip((4, 6), pod(lab, "api").addresses, strict=True):
        assert denied(pod(lab, who), address, 8080)
        assert denied(pod(lab, who), VIPS[family], 80)


def test_neither_does_the_world(lab: Lab) -> None:
    (outside,) = lab.externals
    assert denied(outside, pod(lab, "api").address, 8080)


def test_its_own_node_reaches_a_pod_and_other_nodes_do_not(lab: Lab) -> None:
    api = pod(lab, "api")
    for node in lab.nodes:
        for address in api.addresses:
            assert reaches(node, address, 9090) if node is api.node else denied(node, address, 9090)


def test_who_is_isolated_still_talks_first(lab: Lab) -> None:
    cart = pod(lab, "cart")
    cart.serve_http(80, "cart")
    for address in cart.addresses:
        assert pod(lab, "api").get(url(address, 80)).text == "cart"


@pytest.mark.parametrize("socket_lb", [True, False], ids=["socket", "tc"])
def test_who_lets_nobody_in_meets_itself_behind_its_own_service(socket_lb: bool) -> None:
    with Lab.start(policy=True, socket_lb=socket_lb) as lab:
        api = lab.pod("api", labels={"app": "payments-api"}, namespace="payments")
        other = lab.pod("other", labels={"app": "payments-api"}, namespace="payments")
        api.serve_http(8080, "paid")
        lab.node.services.upsert(*(Service(VIPS[f], 80, backends=[api.at(8080, f)]) for f in VIPS))
        lab.apply(NOBODY)
        for vip in VIPS.values():
            assert api.get(url(vip, 80)).text == "paid"
            assert not reaches(other, vip, 80)


def test_node_ports_are_judged_as_their_backends_unless_another_node_dials_them(lab: Lab) -> None:
    """The node that was dialled speaks for clients of backends elsewhere: to policies it is the client."""
    cart, api, first = pod(lab, "cart"), pod(lab, "api"), lab.nodes[0]
    beside = api
    if len(lab.nodes) > 1:
        beside = lab.pod("beside", api.node, labels={"app": "checkout-service"}, namespace="frontend")
    for family, vip in VIPS.items():
        backends = [api.at(8080, family)]
        for node in lab.nodes:
            where = Exposure(FrontendKind.NODE_PORT, node.addresses[family == 6], 30080)
            node.services.upsert(Service(vip, 80, backends=backends, exposed=[where]))
        for node in lab.nodes:
            address = node.addresses[family == 6]
            assert pod(lab, "checkout").get(url(address, 30080)).text == "paid"
            assert denied(cart, address, 30080)
        if beside is not api:
            there, back = (node.addresses[family == 6] for node in (api.node, first))
            assert beside.get(url(there, 30080)).text == "paid"
            assert denied(beside, back, 30080)  # the first node has dialled
            lab.apply(NODES)
            assert beside.get(url(back, 30080)).text == "paid"
            api.node.policy.remove("CiliumNetworkPolicy payments/nodes")


def test_a_plan_tells_what_a_change_would_cut(lab: Lab) -> None:
    policy = pod(lab, "api").node.policy
    plan = policy.plan(parse_policies(NOBODY))
    cut = [each for each in plan.cut if "frontend/checkout" in each.source]
    assert [(each.destination, each.ports, each.allowed) for each in cut] == [
        (("payments/api",), "8080 of TCP", False)
    ]
    assert "NetworkPolicy payments/payments isolates" in cut[0].why
    assert not plan.opened
    assert plan.entries[1] < plan.entries[0]
    assert not policy.plan(policy.policies.values()).flips


def test_a_part_that_a_policy_has_no_more_goes_with_it(lab: Lab) -> None:
    api, cart = pod(lab, "api"), pod(lab, "cart")
    head = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: parts}\n"
    part = "{endpointSelector: {matchLabels: {app: payments-api}}, ingress: [%s]}"
    parts = [
        part % "{fromEndpoints: [{matchLabels: {app: %s}}]}" % name for name in ("checkout-service", "cart")
    ]
    lab.apply(f"{head}specs: [{', '.join(parts)}]")
    assert reaches(cart, api.address, 9090)
    lab.apply(f"{head}spec: {parts[0]}")
    assert denied(cart, api.address, 9090)
    assert reaches(pod(lab, "checkout"), api.address, 9090)
    for node in lab.nodes:
        node.policy.remove("CiliumClusterwideNetworkPolicy parts")
        assert not [name for name in node.policy.policies if "parts" in name]


def test_the_dump_has_the_pair(lab: Lab) -> None:
    policy = pod(lab, "api").node.policy
    checkout = policy.identity_of(pod(lab, "checkout").address)
    (pair,) = [pair for pair in policy.dump() if pair.causes and pair.causes[0].rule == "spec.ingress[0]"]
    assert (pair.peer, pair.protocol, pair.first, pair.last, pair.allowed) == (checkout, 6, 8080, 8080, True)
    assert pair.subject == policy.identity_of(pod(lab, "api").address)


def test_drops_are_counted_with_the_policy_that_isolates(lab: Lab) -> None:
    node = pod(lab, "api").node
    before = {each.causes: each.packets for each in node.policy.counts()}
    assert denied(pod(lab, "cart"), pod(lab, "api").address, 8080)
    after = {each.causes: each.packets for each in node.policy.counts()}
    assert [cause.policy for causes in after if after[causes] > before[causes] for cause in causes] == [
        "NetworkPolicy payments/payments"
    ]
    assert node.datapath.counters()["DROP_POLICY_DENIED"].packets


def test_a_packet_is_counted_once_wherever_it_is_judged(lab: Lab) -> None:
    """The programs of both pods see it; of two pods on one node the first says all there is to say."""
    checkout, api = pod(lab, "checkout"), pod(lab, "api")
    (datagrams,) = parse_policies(
        PAYMENTS.replace("name: payments,", "name: udp,").replace("8080", "8080, protocol: UDP")
    )
    policy = api.node.policy
    policy.upsert(datagrams)
    try:
        for address in api.addresses:
            before = _allowed(policy, datagrams.name)
            assert checkout.udp(address, 8080, b"once").data == b"once"
            assert _allowed(policy, datagrams.name) - before == 2, "the datagram, and its answer"
    finally:
        policy.remove(datagrams.name)


def _allowed(policy: IdentityPolicy, name: str) -> int:
    counts = (each for each in policy.counts() if each.action is Action.ALLOW)
    return sum(each.packets for each in counts if any(cause.policy == name for cause in each.causes))


def asks(connection: socket.socket, timeout: float = 10.0) -> bool:
    """Another request over a connection that is there."""
    connection.settimeout(timeout)
    try:
        connection.send(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
        found = b""
        while not found.endswith(b"paid") and (more := connection.recv(4096)):
            found += more
        return found.endswith(b"paid")
    except TimeoutError:
        return False


@pytest.mark.parametrize("family", [4, 6])
def test_live_connections_are_kept_or_cut_as_the_change_says(lab: Lab, family: int) -> None:
    checkout, api = pod(lab, "checkout"), pod(lab, "api")
    address = api.addresses[family == 6]
    with checkout.tcp(address, 8080, timeout=10) as one, checkout.tcp(VIPS[family], 80, timeout=10) as two:
        assert asks(one)
        assert asks(two)
        cut = api.node.policy.plan(parse_policies(NOBODY)).connections
        ports = {connection.getsockname()[1] for connection in (one, two)}
        assert {each.source_port for each in cut if each.source_address in checkout.addresses} >= ports
        assert {(each.source, each.destination, each.port) for each in cut} == {
            ("frontend/checkout", "payments/api", 8080)
        }
        assert not api.node.policy.plan(parse_policies(PAYMENTS)).connections
        try:
            lab.apply(NOBODY, existing="keep")
            assert asks(one)
            assert asks(two)
            assert denied(checkout, address, 8080)
            lab.apply(PAYMENTS)
            assert asks(one)
            assert asks(two)
            lab.apply(NOBODY)
            assert not asks(one, 0.5)
            assert not asks(two, 0.5)
        finally:
            lab.apply(PAYMENTS)
        assert reaches(checkout, address, 8080)


def test_answers_to_who_is_not_let_in_any_more_are_cut_too(lab: Lab) -> None:
    """A server that goes on sending to a client gets no farther than the client does."""
    checkout, api = pod(lab, "checkout"), pod(lab, "api")
    with api.socket() as listener:
        listener.bind((str(api.address), 8081))
        listener.listen()
        lab.apply(PAYMENTS.replace("8080", "8081"))
        try:
            with checkout.tcp(api.address, 8081, timeout=10) as client:
                server, _ = listener.accept()
                with server:
                    server.send(b"one")
                    assert client.recv(8) == b"one"
                    lab.apply(NOBODY)
                    server.send(b"two")
                    client.settimeout(0.5)
                    with pytest.raises(TimeoutError):
                        client.recv(8)
        finally:
            lab.apply(PAYMENTS)


@pytest.mark.parametrize("socket_lb", [True, False], ids=["socket", "tc"])
def test_who_is_denied_is_told_if_that_is_wanted(socket_lb: bool) -> None:
    with Lab.start(policy=True, socket_lb=socket_lb) as lab:
        cart = lab.pod("cart", labels={"app": "cart"}, namespace="frontend")
        api = lab.pod("api", labels={"app": "payments-api"}, namespace="payments")
        api.serve_http(8080, "paid")
        api.serve_udp(8080)
        lab.node.services.upsert(*(Service(VIPS[f], 80, backends=[api.at(8080, f)]) for f in VIPS))
        lab.node.policy.answer = True
        with cart.tcp(api.address, 8080, timeout=10) as connection:
            assert asks(connection)
            lab.apply(NOBODY)
            with pytest.raises(ConnectionResetError):
                asks(connection)
        for family, address in zip((4, 6), api.addresses, strict=True):
            for where, port in ((address, 8080), (VIPS[family], 80)):
                with pytest.raises(ConnectionRefusedError):
                    cart.tcp(where, port, timeout=10)
            with pytest.raises(OSError, match="No route to host" if family == 4 else "Permission denied"):
                cart.udp(address, 8080, b"let me in", connected=True, timeout=10)
        assert lab.node.datapath.counters()["REJECT_DENIED"].packets >= 7
        lab.node.policy.answer = False
        assert denied(cart, api.address, 8080)


def test_a_pod_sends_under_its_own_address_only(lab: Lab) -> None:
    cart, api = pod(lab, "cart"), pod(lab, "api")
    with cart.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        header = bytes.fromhex("4500001c0000400040110000") + pod(lab, "checkout").address.packed
        raw.sendto(header + api.address.packed + bytes.fromhex("9c401f9000080000"), (str(api.address), 0))
    assert cart.node.datapath.counters()["DROP_INVALID_SOURCE_IP"].packets >= 1


def test_who_comes_to_an_address_has_begun_nothing(lab: Lab) -> None:
    """What the pod before it had sent is answered no more, for as long as datagrams have answers."""
    lab.apply(PAYMENTS)
    cart, api = pod(lab, "cart"), pod(lab, "api")
    for family, kind in enumerate((socket.AF_INET, socket.AF_INET6)):
        with api.socket(kind, socket.SOCK_DGRAM) as begins, cart.socket(kind, socket.SOCK_DGRAM) as answers:
            for pod_socket, owner in ((begins, api), (answers, cart)):
                pod_socket.bind((str(owner.addresses[family]), 0))
                pod_socket.settimeout(10)
            begins.sendto(b"?", answers.getsockname()[:2])
            _, sender = answers.recvfrom(100)
            answers.sendto(b"!", sender)
            assert begins.recv(100) == b"!"
            with gone(api):
                pass  # and another comes, which is like this one
            answers.sendto(b"!", sender)
            begins.settimeout(0.3)
            with pytest.raises(TimeoutError):
                begins.recv(100)


@contextmanager
def gone(there: Pod) -> Iterator[None]:
    """Its node holds a pod for gone."""
    whose = there.node.policy.whose(there.address)
    assert whose is not None
    workload, identity = whose
    there.node.datapath.detach_pod(there.device, there.addresses)
    try:
        yield
    finally:
        there.node.datapath.attach_pod(
            there.device, there.addresses, pod_mac=there.mac, identity=identity, workload=workload
        )


def test_what_is_left_behind_a_device_is_cut_off(lab: Lab) -> None:
    """The API server may have forgotten a pod that still runs."""
    cart, open_to_all = pod(lab, "cart"), pod(lab, "impostor")
    for each in (cart, open_to_all):
        each.serve_http(7070, "left")
    (outside,) = lab.externals
    with gone(cart):
        for mine, other in zip(cart.addresses, open_to_all.addresses, strict=True):
            assert denied(cart, other, 7070)
            assert denied(open_to_all, mine, 7070)
        assert denied(cart, outside.address, 7070)
    for mine, other in zip(cart.addresses, open_to_all.addresses, strict=True):
        assert reaches(cart, other, 7070)
        assert reaches(open_to_all, mine, 7070)


def test_fragments_reach_who_may_be_reached(lab: Lab) -> None:
    """A datagram that no service translates, and that is longer than a packet."""
    checkout, cart, server = pod(lab, "checkout"), pod(lab, "cart"), pod(lab, "api")
    lab.apply(PAYMENTS.replace("{port: 8080}", "{port: 8080}, {port: 8080, protocol: UDP}"))
    for address in server.addresses:
        assert checkout.udp(address, 8080, b"x" * 2000).data == b"x" * 2000
        with pytest.raises(TimeoutError):
            cart.udp(address, 8080, b"x" * 2000, timeout=0.5)
    lab.apply(PAYMENTS)


@pytest.mark.parametrize("tags", [1, 2])
def test_tags_hide_nothing(lab: Lab, tags: int) -> None:
    """The stack strips tags of VLAN 0, and delivers what is under them."""
    cart, checkout, anybody = pod(lab, "cart"), pod(lab, "checkout"), pod(lab, "impostor")
    for family, kind in enumerate((socket.AF_INET, socket.AF_INET6)):
        lie, server = checkout.addresses[family], anybody.addresses[family]
        with (
            anybody.socket(kind, socket.SOCK_DGRAM) as heard,
            cart.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
        ):
            heard.bind((str(server), 0))
            heard.settimeout(0.2)
            port = heard.getsockname()[1]
            frame = udp(lie, server, 40000, port, b"lie", src_mac=cart.mac, dst_mac=POD_GATEWAY_MAC)
            wire.bind(("eth0", 0))
            wire.send(frame[:12] + b"\x81\0\0\0" * tags + frame[12:])
            with pytest.raises(TimeoutError):
                heard.recv(100)


def test_what_cannot_be_asked_for_is_refused(lab: Lab) -> None:
    with pytest.raises(ModelError, match="existing is"):
        lab.apply(PAYMENTS, existing="drop")  # type: ignore[arg-type]
    policy = lab.node.policy
    for change in (policy.upsert, policy.apply):
        with pytest.raises(ModelError, match="is no Policy: parse_policies makes some"):
            change(PAYMENTS)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="is no name of a policy"):
        policy.remove(parse_policies(PAYMENTS)[0])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="'off' is neither True nor False"):
        policy.audit = "off"  # type: ignore[assignment]
    assert not policy.audit
    with pytest.raises(ModelError, match="'here' is not an IP address"):
        policy.identity_of("here")
    with pytest.raises(LabError, match="no policy is in"):
        lab.apply(NOBODY.replace("kind: NetworkPolicy", "kind: Pod"))
    with Lab.start() as plain, pytest.raises(LabError, match="policy=True"):
        plain.apply(PAYMENTS)


def test_an_explanation_asks_the_policies(lab: Lab) -> None:
    api, dialled = pod(lab, "api"), Frontend(VIPS[4], 80)
    for client, allowed in ("checkout", True), ("cart", False):
        source = pod(lab, client)
        explained = source.node.datapath.explain(dialled, source.address)
        judged_here = source.node is api.node  # else the server's node does
        assert (explained.outcome.name != "DROP_POLICY_DENIED") is (allowed or not judged_here), str(
            explained
        )
        said = api.node.datapath.verdict(source.address, api.address, 8080).judgements[-1]
        assert (said.pod, said.allowed) == (api.address, allowed)
        rule = "spec.ingress[0]" if allowed else "default deny: "
        assert rule in said.rule
        assert "NetworkPolicy payments/payments" in said.rule


def test_the_how_to_is_true() -> None:
    for code, output in blocks(ROOT / "docs/how-to/enforce.md"):
        assert run(code, {}) == output


def test_nobody_outside_speaks_as_a_pod(lab: Lab) -> None:
    """But where the network routes pods, its routers have to see to those of other nodes."""
    (outside,), anybody = lab.externals, pod(lab, "impostor")
    routed = lab.routing == "native" and len(lab.nodes) == 2
    for name, heard_of in {"checkout": False, "api": routed}.items():
        for family, kind in enumerate((socket.AF_INET, socket.AF_INET6)):
            lie, server = pod(lab, name).addresses[family], anybody.addresses[family]
            with (
                anybody.socket(kind, socket.SOCK_DGRAM) as heard,
                outside.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
            ):
                heard.bind((str(server), 0))
                heard.settimeout(0.3)
                port = heard.getsockname()[1]
                wire.bind(("eth0", 0))
                wire.send(udp(lie, server, 40000, port, b"lie", src_mac=outside.mac, dst_mac=lab.node.mac))
                if heard_of:
                    assert heard.recv(100) == b"lie"
                else:
                    with pytest.raises(TimeoutError):
                        heard.recv(100)
