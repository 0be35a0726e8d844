"""Services on real sockets: what a client in a pod sees, at TC and at its socket, over both families."""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from k8sdatapath.errors import CapacityError
from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Backend, Selection, Service
from k8sdatapath.node import Capacity

VIP = {4: "10.96.0.10", 6: "fd00:10:96::10"}
NAMES = ("one", "two", "three")
SMALL = Capacity(services=1024, backends=4096, slots=65536, flows=65536, pods=64)
HOOKS = {"tc": {"socket_lb": False}, "socket": {"tc_lb": False}, "both": {}}


@pytest.fixture(scope="module", params=HOOKS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A client and three backends that say their own names, by HTTP on 8080 and UDP on 5353."""
    with Lab.start(capacity=SMALL, **HOOKS[request.param]) as lab:
        lab.pod("client")
        for name in NAMES:
            pod = lab.pod(name)
            pod.serve_http(8080, name)
            pod.serve_udp(5353, name)
        yield lab


@pytest.fixture
def client(lab: Lab) -> Host:
    return lab.node.pods[0]


@pytest.fixture(autouse=True)
def empty(lab: Lab) -> Iterator[None]:
    yield
    lab.node.services.plan([]).apply()


def backends(lab: Lab, family: int, port: int = 8080) -> list[Backend]:
    return [pod.at(port, family) for pod in lab.node.pods[1:]]


def url(family: int) -> str:
    return f"http://{VIP[family]}/" if family == 4 else f"http://[{VIP[family]}]/"


def expect_even(sample: Callable[[], Counter[str]], kinds: int) -> None:
    """Every share within three sigma; chance alone fails that once in a hundred, so it may try twice."""

    def even(counts: Counter[str]) -> bool:
        total = counts.total()
        mean, sigma = total / kinds, math.sqrt(total * (1 / kinds) * (1 - 1 / kinds))
        return len(counts) == kinds and all(abs(count - mean) <= 3 * sigma for count in counts.values())

    first = sample()
    assert even(first) or even(second := sample()), (first, second)


@pytest.mark.parametrize("family", [4, 6])
def test_curl_through_a_cluster_ip(lab: Lab, client: Host, family: int) -> None:
    lab.node.services.upsert(Service(VIP[family], 80, backends=backends(lab, family)))
    seen = Counter(client.exec(["curl", "-gs", "-m5", url(family)], check=True).stdout for _ in range(12))
    assert set(seen) <= set(NAMES)
    assert len(seen) > 1


@pytest.mark.parametrize("family", [4, 6])
def test_the_client_sees_the_service_as_its_peer(lab: Lab, client: Host, family: int) -> None:
    lab.node.services.upsert(Service(VIP[family], 80, backends=backends(lab, family)))
    answer = client.get(url(family))
    assert answer.status == 200
    assert answer.peer == (VIP[family], 80)
    assert str(client.addresses[family == 6]) in answer.headers["x-peer"]


@pytest.mark.parametrize("connected", [False, True], ids=["sendto", "connected"])
@pytest.mark.parametrize("family", [4, 6])
def test_udp_through_a_cluster_ip(lab: Lab, client: Host, family: int, connected: bool) -> None:
    lab.node.services.upsert(Service(VIP[family], 53, "UDP", backends=backends(lab, family, 5353)))
    answers = [client.udp(VIP[family], 53, "who", connected=connected) for _ in range(12)]
    assert {answer.source for answer in answers} == {(VIP[family], 53)}
    assert len({answer.data for answer in answers}) > 1


def test_a_v4_service_from_a_v6_socket(lab: Lab, client: Host) -> None:
    lab.node.services.upsert(Service(VIP[4], 80, backends=backends(lab, 4)))
    with client.socket(socket.AF_INET6) as sock:
        sock.settimeout(5)
        sock.connect((f"::ffff:{VIP[4]}", 80))
        assert sock.getpeername()[:2] == (f"::ffff:{VIP[4]}", 80)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"200" in sock.recv(4096)


def test_one_udp_socket_stays_with_its_backend_and_talks_to_two_services(lab: Lab, client: Host) -> None:
    both = [Service(VIP[4], port, "UDP", backends=backends(lab, 4, 5353)) for port in (53, 54)]
    lab.node.services.upsert(*both)
    with client.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        answers: dict[int, set[bytes]] = {53: set(), 54: set()}
        if (
            lab._datapath is not None and "tc_lb" in lab._datapath
        ):  # socket: replies are told apart by backend
            for port in answers:
                for _ in range(10):
                    sock.sendto(b"who", (VIP[4], port))
                    data, source = sock.recvfrom(64)
                    assert source == (VIP[4], port)
                    answers[port].add(data)
        else:
            for _ in range(10):
                sock.sendto(b"who", (VIP[4], 53))
                data, source = sock.recvfrom(64)
                assert source == (VIP[4], 53)
                answers[53].add(data)
        assert all(len(seen) <= 1 for seen in answers.values())


@pytest.mark.parametrize(("family", "requests"), [(4, 10_000), (6, 2_000)])
def test_many_requests_spread_evenly_and_none_fails(
    lab: Lab, client: Host, family: int, requests: int
) -> None:
    service = Service(VIP[family], 80, backends=backends(lab, family))
    lab.node.services.upsert(service)

    def sample() -> Counter[str]:
        before = lab.node.services.flows(service.frontend)
        counts: Counter[str] = Counter()
        for _ in range(requests):
            counts[request(client, family)] += 1
        after = lab.node.services.flows(service.frontend)
        told = {str(b.address): after[b] - before[b] for b in service.backends}
        seen = {str(pod.addresses[family == 6]): counts[pod.name] for pod in lab.node.pods[1:]}
        assert told == seen  # the kernel's own counters agree with what the client got
        return counts

    expect_even(sample, len(NAMES))


def request(client: Host, family: int) -> str:
    with client.tcp(VIP[family], 80, timeout=5) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"200"
    return body.decode()


@pytest.mark.parametrize("family", [4, 6])
def test_a_removed_backend_gets_no_new_flow_and_keeps_those_it_has(
    lab: Lab, client: Host, family: int
) -> None:
    pods = backends(lab, family)
    lab.node.services.upsert(Service(VIP[family], 80, backends=pods[:1]))
    with client.tcp(VIP[family], 80, timeout=5) as held:
        lab.node.services.upsert(Service(VIP[family], 80, backends=pods[1:]))
        assert {request(client, family) for _ in range(50)} == {"two", "three"}
        held.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := held.recv(4096):
            answer += chunk
        assert answer.endswith(b"one")


def test_a_udp_flow_moves_on_when_its_backend_is_removed(lab: Lab, client: Host) -> None:
    pods = backends(lab, 4, 5353)
    lab.node.services.upsert(Service(VIP[4], 53, "UDP", backends=pods[:1]))
    with client.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(b"who", (VIP[4], 53))
        assert sock.recv(64) == b"one"
        lab.node.services.upsert(Service(VIP[4], 53, "UDP", backends=pods[1:2]))
        sock.sendto(b"who", (VIP[4], 53))
        assert sock.recv(64) == b"two"


def test_a_service_without_backends_answers_nobody(lab: Lab, client: Host) -> None:
    lab.node.services.upsert(Service(VIP[4], 80))
    with pytest.raises(OSError):  # noqa: PT011 - refused at the socket, silence per packet
        client.tcp(VIP[4], 80, timeout=0.3)


def test_what_is_no_service_is_left_alone(lab: Lab, client: Host) -> None:
    lab.node.services.upsert(Service(VIP[4], 80, backends=backends(lab, 4)[:1]))
    pod = lab.node.pods[2]
    answer = client.get(f"http://{pod.address}:8080/")
    assert answer.text == pod.name
    assert answer.peer == (str(pod.address), 8080)


def test_a_direct_connection_may_use_the_ports_of_a_closed_flow(lab: Lab, client: Host) -> None:
    """The backend answers it from where it answered the flow, but now as itself."""
    pod = lab.node.pods[1]
    lab.node.services.upsert(Service(VIP[4], 80, backends=[pod.at(8080)]))
    for address, port in ((VIP[4], 80), (str(pod.address), 8080), (VIP[4], 80)):
        with client.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(5)
            sock.bind(("0.0.0.0", 45678))
            sock.connect((address, port))
            assert sock.getpeername() == (address, port)
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while sock.recv(4096):
                pass


def test_protocols_and_ports_are_told_apart(lab: Lab, client: Host) -> None:
    web, dns = backends(lab, 4)[:1], backends(lab, 4, 5353)[1:2]
    lab.node.services.upsert(Service(VIP[4], 80, backends=web), Service(VIP[4], 80, "UDP", backends=dns))
    assert client.get(url(4)).text == "one"
    assert client.udp(VIP[4], 80, "who").data == b"two"


def test_a_maglev_service_answers(lab: Lab, client: Host) -> None:
    service = Service(VIP[4], 80, backends=backends(lab, 4), selection=Selection.MAGLEV)
    lab.node.services.upsert(service)
    assert {request(client, 4) for _ in range(60)} == set(NAMES)
    shares = lab.node.services.resolve(service.frontend).shares
    assert all(abs(share - 1 / 3) < 0.01 for share in shares.values())


def test_weights_are_shares_of_new_flows(lab: Lab, client: Host) -> None:
    one, two, three = (pod.address for pod in lab.node.pods[1:])
    weighted = [Backend(one, 8080, weight=8), Backend(two, 8080, weight=2), Backend(three, 8080, weight=0)]
    lab.node.services.upsert(Service(VIP[4], 80, backends=weighted))
    counts = Counter(request(client, 4) for _ in range(500))
    assert counts["three"] == 0
    assert 2 < counts["one"] / counts["two"] < 8


def test_what_does_not_fit_is_refused_and_changes_nothing(lab: Lab, client: Host) -> None:
    table = lab.node.services
    table.upsert(Service(VIP[4], 80, backends=backends(lab, 4)[:1]))
    before = table.dump()
    many = [
        Service("10.97.0.1", port, backends=[Backend("10.244.9.9", 1)]) for port in range(1, SMALL.services)
    ]
    with pytest.raises(CapacityError, match="1 too many"):  # their address has a row too
        table.upsert(*many)
    wide = Service("10.97.0.1", 1, backends=[Backend("10.244.9.9", p) for p in range(1, SMALL.backends + 2)])
    with pytest.raises(CapacityError, match="backends"):
        table.upsert(wide)
    assert table.dump() == before
    assert client.get(url(4)).text == "one"


def test_a_client_outside_reaches_the_service_through_the_uplink() -> None:
    with Lab.start(capacity=SMALL) as lab:
        outside, web = lab.external("outside"), lab.pod("web")
        web.serve_http(8080, "web")
        web.serve_udp(5353, "web")
        for family in (4, 6):
            lab.node.services.upsert(
                Service(VIP[family], 80, backends=[web.at(8080, family)]),
                Service(VIP[family], 53, "UDP", backends=[web.at(5353, family)]),
            )
            answer = outside.get(url(family))
            assert (answer.text, answer.peer) == ("web", (VIP[family], 80))
            assert outside.udp(VIP[family], 53).source == (VIP[family], 53)
        counters = lab.node.datapath.counters()
        assert counters["TO_POD"].packets > 0


def test_without_redirection_the_stack_carries_the_packets() -> None:
    with Lab.start(capacity=SMALL, socket_lb=False, redirect=False) as lab:
        client, web = lab.pod("client"), lab.pod("web")
        web.serve_http(8080, "web")
        for family in (4, 6):
            lab.node.services.upsert(Service(VIP[family], 80, backends=[web.at(8080, family)]))
            assert client.get(url(family)).text == "web"
        counters = lab.node.datapath.counters()
        assert "TO_STACK" in counters
        assert "TO_POD" not in counters


def test_three_sigma_is_what_it_says() -> None:
    fair = Counter(one=3333, two=3333, three=3334)
    expect_even(lambda: fair, 3)
    with pytest.raises(AssertionError):
        expect_even(lambda: Counter(one=3000, two=3500, three=3500), 3)


def test_a_backend_on_the_node_itself_answers_through_its_service() -> None:
    """As the API server does behind ``kubernetes.default``: its answers come out of the node's stack."""
    with Lab.start(capacity=SMALL, socket_lb=False) as lab:
        client = lab.pod("client")
        lab.node.serve_http(6443, "api")
        lab.node.serve_udp(6443, "api")
        for family in (4, 6):
            backend = lab.node.at(6443, family)
            lab.node.services.upsert(
                Service(VIP[family], 80, backends=[backend]),
                Service(VIP[family], 53, "UDP", backends=[backend]),
            )
            assert client.get(url(family)).peer == (VIP[family], 80)
            assert client.udp(VIP[family], 53).source == (VIP[family], 53)
