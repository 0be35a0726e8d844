"""Policies that ask for requests, between pods: at the server, at the client, and for older connections."""

from __future__ import annotations

import errno
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hpack import Encoder

from k8sdatapath import Lab, Service
from k8sdatapath.datapath.l7_policy import L7Policy
from k8sdatapath.datapath.walk import walk
from k8sdatapath.lab.lab import Pod
from k8sdatapath.model import Frontend, IPAddress
from k8sdatapath.model.policy import Toward
from tests.lab.test_l7 import settle
from tests.support.filters import crammed
from tests.support.http2_exchanges import PREFACE, heads, request

pytestmark = pytest.mark.lab

PORT = 8080
SEED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: payments, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payments-api}}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: checkout-service, io.kubernetes.pod.namespace: frontend}
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: POST, path: /charge}]}
"""
EGRESS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: calls, namespace: frontend}
spec:
  endpointSelector: {matchLabels: {app: caller}}
  egress:
  - toEndpoints: [{matchLabels: {app: billing, io.kubernetes.pod.namespace: payments}}]
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: GET, path: "/bills/[0-9]+"}]}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.start(policy=True, l7=True) as lab:
        lab.pod("checkout", labels={"app": "checkout-service"}, namespace="frontend")
        lab.pod("cart", labels={"app": "cart"}, namespace="frontend")
        lab.pod("caller", labels={"app": "caller"}, namespace="frontend")
        for name, app in (("api", "payments-api"), ("billing", "billing")):
            lab.pod(name, labels={"app": app}, namespace="payments").serve_http(PORT, "paid")
        yield lab


@pytest.fixture
def l7(lab: Lab) -> Iterator[L7Policy]:
    found = lab.node.datapath.l7
    assert found is not None
    found.events()
    yield found
    lab.node.policy.apply(())


def pod(lab: Lab, name: str) -> Pod:
    return next(each for each in lab.node.pods if each.name == name)


def status(client: Pod, method: str, address: IPAddress, path: str = "/charge", *, patience: int = 10) -> str:
    """What curl says of a request: the status, 000 if there is none for so many seconds."""
    host = f"[{address}]" if address.version == 6 else str(address)
    url = f"http://{host}:{PORT}{path}"
    command = ["curl", "-s", "-m", str(patience), "-o", "/dev/null", "-w", "%{http_code}", "-X", method, url]
    return client.exec(command).stdout


def say(sock: socket.socket, line: str) -> bytes:
    """Send a request, and read the response."""
    sock.sendall(f"{line} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return response(sock)


def response(sock: socket.socket) -> bytes:
    """A whole one, or what there is until the end."""
    found = b""
    while not is_whole(found) and (more := sock.recv(4096)):
        found += more
    return found


def is_whole(found: bytes) -> bool:
    head, end, body = found.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and len(body) >= int(length[1] if length else 0)


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_the_seed_scenario(lab: Lab, l7: L7Policy, family: int) -> None:
    lab.apply(SEED)
    address = pod(lab, "api").addresses[family]
    checkout, cart = pod(lab, "checkout"), pod(lab, "cart")
    assert status(checkout, "POST", address) == "200"
    assert status(checkout, "GET", address) == "403"
    assert status(cart, "POST", address, patience=1) == "000"
    (denied, *_) = l7.events()
    assert (denied.verdict, denied.reason, denied.method, denied.path) == (
        "denied",
        "NO_RULE",
        "GET",
        "/charge",
    )
    assert denied.client[0] == checkout.addresses[family]
    assert denied.identity == lab.node.policy.identity_of(checkout.address)


def test_what_becomes_of_a_request_is_known_beforehand(lab: Lab, l7: L7Policy) -> None:
    """At both ends, through a service, and nothing is noted of it."""
    lab.apply(SEED, EGRESS)
    server, client, caller, billing = (pod(lab, name) for name in ("api", "checkout", "caller", "billing"))
    service = Service("10.96.0.9", 80, backends=[server.at(PORT)])
    lab.node.services.upsert(service)
    before, node = l7.stats(), lab.node.datapath
    denied = node.walk(service.frontend, client.address, request="GET /charge")
    assert [(each.allowed, each.verdict.reason) for each in denied.requests] == [(False, "NO_RULE")]
    assert f"GET /charge is denied at the server {server.address}: no rule allows it." in str(denied)
    assert denied.advice[0].startswith("Have a rule for requests of the pod")
    assert denied.outcome.name == "TO_POD"

    with node.explainer() as explainer, l7.judge() as judge:
        allowed = walk(explainer, service.frontend, client.address, request="POST /charge", requests=judge)
        assert allowed.advice == ()
        assert [*map(str, allowed.requests)] == [
            f"POST /charge is allowed at the server {server.address}: POST /charge."
        ]
        to = Frontend(billing.addresses[1], PORT)
        for path, is_allowed in ("/bills/17", True), ("/bills/all", False):
            line = f"GET {path}"
            (asked,) = walk(explainer, to, caller.addresses[1], request=line, requests=judge).requests
            assert (asked.toward, asked.allowed) == (Toward.EGRESS, is_allowed)
        assert not walk(explainer, to, client.addresses[1], request="GET /", requests=judge).requests
    assert (l7.stats(), l7.events()) == (before, [])
    lab.node.services.remove(service.frontend)


def test_a_change_holds_from_the_next_request_on(lab: Lab, l7: L7Policy) -> None:
    lab.apply(SEED)
    with pod(lab, "checkout").tcp(pod(lab, "api").address, PORT) as kept:
        assert say(kept, "POST /charge").startswith(b"HTTP/1.1 200")
        lab.apply(SEED.replace("/charge", "/pay"))
        assert say(kept, "POST /charge").startswith(b"HTTP/1.1 403")
        assert kept.recv(4096) == b""


def test_a_connection_older_than_the_policy_is_ended(lab: Lab, l7: L7Policy) -> None:
    with pod(lab, "checkout").tcp(pod(lab, "api").address, PORT, timeout=10) as kept:
        assert say(kept, "GET /secret").startswith(b"HTTP/1.1 200")
        lab.apply(SEED)
        with pytest.raises(ConnectionResetError):
            kept.recv(4096)


AUDIT = "frontend, annotations: {k8sdatapath.io/audit: 'true'}}"
FREE = EGRESS[: EGRESS.index("      rules:")]
REQUEST = b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "before", [None, FREE, EGRESS.replace("frontend}", AUDIT, 1)], ids=["no policy", "any", "audit"]
)
def test_a_clients_connection_older_than_its_policy_is_ended(
    lab: Lab, l7: L7Policy, before: str | None
) -> None:
    """And one whose requests were only looked at, which are read no further behind one that is wrong."""
    if before is not None:
        lab.apply(before)
    with pod(lab, "caller").tcp(pod(lab, "billing").address, PORT, timeout=10) as kept:
        assert say(kept, "GET /secret").startswith(b"HTTP/1.1 200")
        lab.apply(EGRESS)
        with pytest.raises((ConnectionResetError, ConnectionAbortedError)):
            kept.recv(4096)


def test_a_server_that_was_only_looked_at_is_not_left_alone(lab: Lab, l7: L7Policy) -> None:
    """A policy that denies nothing ends no connection; one that does, ends what is read no more."""
    with pod(lab, "checkout").tcp(pod(lab, "api").address, PORT, timeout=10) as kept:
        assert say(kept, "GET /secret").startswith(b"HTTP/1.1 200")
        lab.apply(SEED.replace("payments}", AUDIT.replace("frontend", "payments"), 1))
        time.sleep(3)
        assert say(kept, "GET /secret").startswith(b"HTTP/1.1 200")
        with pod(lab, "checkout").tcp(pod(lab, "api").address, PORT, timeout=10) as read:
            assert say(read, "GET /secret").startswith(b"HTTP/1.1 200")
            assert [each.verdict for each in l7.events()] == ["audited"]
            lab.apply(SEED)
            for each in kept, read:
                with pytest.raises(ConnectionResetError):
                    each.recv(4096)


def heard(listening: socket.socket) -> bytes:
    """What the next connection brings, soon."""
    accepted, _ = listening.accept()
    with accepted:
        accepted.settimeout(listening.gettimeout())
        return accepted.recv(4096)


@pytest.mark.parametrize("how", ["with its SYN", "over MPTCP", "before it is connected"])
def test_a_client_sends_nothing_that_is_not_read(lab: Lab, l7: L7Policy, how: str) -> None:
    """Over a socket whose bytes our programs do not see yet, or never do."""
    lab.apply(EGRESS.replace("8080", "9090"))
    caller, billing = pod(lab, "caller"), pod(lab, "billing")
    to = str(billing.address), 9090
    if how == "with its SYN":
        for each in caller, billing:
            each.exec(["sysctl", "-qw", "net.ipv4.tcp_fastopen=0x207"])  # without a cookie
    with (
        billing.socket(socket.AF_INET) as listening,
        caller.socket(
            socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP if how == "over MPTCP" else 0
        ) as client,
    ):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("", 9090))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        listening.listen(0 if how == "before it is connected" else 5)
        listening.settimeout(2)
        if how == "with its SYN":
            client.sendto(REQUEST, socket.MSG_FASTOPEN, to)
        elif how == "over MPTCP":
            client.connect(to)
            client.send(REQUEST)
        else:
            with caller.tcp(to[0], to[1]):  # the queue is full, and the next SYN has to be sent once more
                client.setblocking(False)
                assert client.connect_ex(to) == errno.EINPROGRESS
                client.setblocking(True)
                threading.Timer(0.3, lambda: listening.accept()[0].close()).start()
                client.send(REQUEST)
        with pytest.raises(TimeoutError):
            heard(listening)
        assert {"NOT_READ", "UNREADABLE"} & l7.stats().keys()


def test_a_client_whose_socket_has_no_room_says_nothing(lab: Lab, l7: L7Policy) -> None:
    """What is not known of it is asked of policies, packet by packet; others do not notice."""
    lab.apply(EGRESS)
    caller, billing, free = pod(lab, "caller"), pod(lab, "billing"), pod(lab, "cart")
    with caller.socket(socket.AF_INET) as client:
        crammed(client)
        client.settimeout(1)
        with pytest.raises((TimeoutError, ConnectionAbortedError)):  # it is ended at a look at all
            client.connect((str(billing.address), PORT))
    for pod_, line in (caller, "GET /bills/17"), (free, "GET /anything"):
        with pod_.tcp(billing.address, PORT) as kept:
            assert say(kept, line).startswith(b"HTTP/1.1 200")
    with free.socket(socket.AF_INET) as client:
        crammed(client)
        client.settimeout(10)
        client.connect((str(billing.address), PORT))
        assert say(client, "GET /anything").startswith(b"HTTP/1.1 200")


def test_a_server_whose_sockets_have_no_room_gets_nothing(lab: Lab, l7: L7Policy) -> None:
    lab.apply(SEED.replace("8080", "9090"))
    api, checkout = pod(lab, "api"), pod(lab, "checkout")
    with api.socket(socket.AF_INET) as listening, checkout.socket(socket.AF_INET) as client:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("", 9090))
        listening.listen()
        crammed(listening)
        client.settimeout(10)
        client.connect((str(api.address), 9090))
        with listening.accept()[0] as served:
            served.settimeout(10)
            with suppress(ConnectionResetError):
                client.sendall(b"POST /charge HTTP/1.1\r\nHost: a\r\n\r\n")
            with pytest.raises(ConnectionAbortedError):  # it is ended at a look at all
                served.recv(4096)


def test_such_a_client_sends_nothing_with_its_syn_to_a_service() -> None:
    """Nothing tells yet who is behind that."""
    with Lab.start(policy=True, l7=True, socket_lb=False) as lab:
        caller = lab.pod("caller", labels={"app": "caller"}, namespace="frontend")
        billing = lab.pod("billing", labels={"app": "billing"}, namespace="payments")
        lab.apply(EGRESS)
        lab.node.services.upsert(Service("10.96.0.9", 80, backends=[billing.at(PORT)]))
        for each in caller, billing:
            each.exec(["sysctl", "-qw", "net.ipv4.tcp_fastopen=0x207"])  # without a cookie
        with billing.socket(socket.AF_INET) as listening, caller.socket(socket.AF_INET) as client:
            listening.bind(("", PORT))
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
            listening.listen()
            listening.settimeout(0.5)
            crammed(client)
            client.setblocking(False)
            with suppress(BlockingIOError):  # if nothing leaves with the SYN
                client.sendto(REQUEST, socket.MSG_FASTOPEN, ("10.96.0.9", 80))
            with pytest.raises((TimeoutError, ConnectionResetError)):
                heard(listening)  # the SYN that follows after a second is empty


def test_a_client_that_sends_with_its_syn_is_free_where_nothing_is_asked(lab: Lab, l7: L7Policy) -> None:
    lab.apply(FREE)
    caller, billing = pod(lab, "caller"), pod(lab, "billing")
    caller.exec(["sysctl", "-qw", "net.ipv4.tcp_fastopen=0x207"])
    with caller.socket(socket.AF_INET) as client:
        client.settimeout(10)
        client.sendto(REQUEST, socket.MSG_FASTOPEN, (str(billing.address), PORT))
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


def words(count: int) -> tuple[list[str], list[str]]:
    """Rules that multiply each other's states, and requests that meet one each."""
    rules = [f"{{path: '.*word{number}/.*'}}" for number in range(count)]
    return rules, [f"POST /a/word{number}/b HTTP/1.1\r\nHost: a\r\n\r\n" for number in range(count)]


def headers(count: int) -> tuple[list[str], list[str]]:
    """Rules that ask for a header each, and some that do not, and requests that meet them."""
    rules = [f"{{path: '/h/.*', headers: [X-Has-{number}]}}" for number in range(count)]
    rules += [f"{{path: /free/{number}}}" for number in range(8)]
    wanted = [*range(0, count, count // 16), count - 1]
    asking = [f"GET /h/1 HTTP/1.1\r\nHost: a\r\nX-Has-{number}: x\r\n\r\n" for number in wanted]
    return rules, [*asking, *(f"PUT /free/{number} HTTP/1.1\r\nHost: a\r\n\r\n" for number in range(8))]


def automata_of(l7: L7Policy, client: socket.socket) -> int:
    """How many read what a client sends."""
    own = client.getsockname()[1]
    number, count = next(row.rules for row in l7._conns.values() if row.way.dport == own), 0
    while number:
        number, count = l7._automata[number].more, count + 1
    return count


def send_in_two(sock: socket.socket, data: bytes, cut: int) -> None:
    sock.send(data[:cut])
    sock.send(data[cut:])


NONE = b"GET /word/none HTTP/1.1\r\nHost: a\r\nX-Has: x\r\n\r\n"
NO_HEADER = b"GET /h/1 HTTP/1.1\r\nHost: a\r\nX-Has-no: x\r\n\r\n"


@pytest.mark.parametrize(
    ("automata", "rules", "allowed"),
    [(2, *words(8)), (3, *words(14)), (3, *headers(270)), (4, *headers(400))],
    ids=["2 of paths", "3 of paths", "3 of headers", "4 of headers"],
)
def test_rules_that_are_too_many_for_one_automaton_hold_at_clients(
    lab: Lab, l7: L7Policy, automata: int, rules: list[str], allowed: list[str]
) -> None:
    """Each automaton's, whole, in pieces, and one behind the other; what none has is not sent."""
    one = '{method: GET, path: "/bills/[0-9]+"}'
    lab.apply(EGRESS.replace(one, ", ".join([*rules, one])))
    caller, billing = pod(lab, "caller"), pod(lab, "billing")
    requests = [each.encode() for each in [*allowed, "GET /bills/17 HTTP/1.1\r\nHost: a\r\n\r\n"]]
    with caller.tcp(billing.address, PORT, timeout=10) as kept:
        kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request_ in requests:
            kept.sendall(request_)
            assert response(kept).startswith(b"HTTP/1.1 200"), request_
        assert automata_of(l7, kept) == automata
        for request_ in requests[:: len(requests) // 4]:
            for byte in request_:
                kept.send(bytes([byte]))
            assert response(kept).startswith(b"HTTP/1.1 200"), request_
        kept.sendall(b"".join(requests))
        answers = b""
        while answers.count(b"HTTP/1.1 200") < len(requests):
            answers += kept.recv(65536)
        with pytest.raises(PermissionError):
            kept.send(requests[-1] + NONE)
    for denied in NONE, NO_HEADER:
        for cut in 0, 4, 9, len(denied) - 3, len(denied) - 1:
            with caller.tcp(billing.address, PORT) as kept, pytest.raises(PermissionError):
                send_in_two(kept, denied, cut)
    settle(l7, 0)  # or there is no room for other large sets yet


def test_a_client_is_refused_what_its_own_policy_denies(lab: Lab, l7: L7Policy) -> None:
    lab.apply(EGRESS)
    caller, billing = pod(lab, "caller"), pod(lab, "billing")
    for address in billing.addresses:
        with caller.tcp(address, PORT) as kept:
            assert say(kept, "GET /bills/17").startswith(b"HTTP/1.1 200")
            for _ in range(2):  # and nothing after it
                with pytest.raises(PermissionError):  # EACCES
                    kept.send(b"GET /bills HTTP/1.1\r\nHost: a\r\n\r\n")
        with caller.tcp(address, PORT) as kept:
            encoder = Encoder()
            kept.send(PREFACE + heads(encoder.encode(request("/bills/17", method="GET"))))
            for _ in range(2):
                with pytest.raises(PermissionError):
                    kept.send(heads(encoder.encode(request("/bills", method="GET")), 3))
    events = [(each.path, each.verdict) for each in l7.events()]
    assert events == [("/bills", "denied")] * 4


@pytest.mark.parametrize("at_socket", [True, False], ids=["at its socket", "per packet"])
def test_a_client_that_dials_a_service_is_asked_about_the_backend(at_socket: bool) -> None:
    with Lab.start(policy=True, l7=True, pod_sockets=at_socket) as lab:
        caller = lab.pod("caller", labels={"app": "caller"}, namespace="frontend")
        other = lab.pod("other", labels={"app": "other"}, namespace="payments")
        billing = lab.pod("billing", labels={"app": "billing"}, namespace="payments")
        for each in (billing, other):
            each.serve_http(PORT, "paid")
        lab.node.services.upsert(Service("10.96.0.30", 80, backends=[billing.at(PORT)]))
        lab.apply(EGRESS)
        with caller.tcp("10.96.0.30", 80) as kept:
            assert say(kept, "GET /bills/17").startswith(b"HTTP/1.1 200")
            with pytest.raises(PermissionError):
                kept.send(b"GET /bills HTTP/1.1\r\nHost: a\r\n\r\n")
        with billing.tcp(other.address, PORT) as free:
            assert say(free, "GET /bills").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_MPTCP], ids=["TCP", "MPTCP"])
def test_what_cannot_be_read_is_not_let_in(lab: Lab, l7: L7Policy, protocol: int) -> None:
    """Sockets of MPTCP are not among those whose bytes our programs can see."""
    lab.apply(SEED.replace("8080", "9090"))
    api, checkout = pod(lab, "api"), pod(lab, "checkout")
    with (
        api.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as listening,
        checkout.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client,
    ):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(api.address), 9090))
        listening.listen()
        client.settimeout(5)
        client.connect((str(api.address), 9090))
        served, _ = listening.accept()
        with served:
            client.sendall(b"POST /charge HTTP/1.1\r\n")
            if protocol == socket.IPPROTO_TCP:
                assert served.recv(100) == b"POST /charge HTTP/1.1\r\n"
                return
            deadline = time.monotonic() + 10
            while "NOT_READ" not in l7.stats():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            served.setblocking(False)
            with pytest.raises(BlockingIOError):
                served.recv(100)
