"""The health server, asked over real sockets on loopback."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from k8sdatapath.errors import ClosedError
from k8sdatapath.kube import HealthCheck
from k8sdatapath.kube.health import HealthServer
from tests.support.ports import reserved_ports

V4, V6 = IPv4Address("127.0.0.1"), IPv6Address("::1")


@pytest.fixture
def ports() -> Iterator[Iterator[int]]:
    """Where nobody else listens, at either address."""
    with reserved_ports() as made:
        yield made


@pytest.fixture
def port(ports: Iterator[int]) -> int:
    return next(ports)


def check(port: int, ipv4: int | None = 1, ipv6: int | None = None, name: str = "web") -> HealthCheck:
    return HealthCheck("shop", name, port, ipv4, ipv6)


@pytest.fixture
def health() -> Iterator[HealthServer]:
    with HealthServer([V4, V6]) as server:
        yield server


def ask(
    port: int, host: str = "127.0.0.1", method: str = "GET"
) -> tuple[int, dict[str, object], http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(method, "/healthz")
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else {}, answer.headers
    finally:
        connection.close()


def refused(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


class TestAnswers:
    def test_200_with_ready_endpoints(self, health: HealthServer, port: int):
        health.update([check(port, 2)])
        status, body, headers = ask(port)
        assert status == 200
        assert body == {
            "service": {"namespace": "shop", "name": "web"},
            "localEndpoints": 2,
            "serviceProxyHealthy": True,
        }
        assert headers["Content-Type"] == "application/json"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"

    def test_503_without(self, health: HealthServer, port: int):
        health.update([check(port, 0)])
        status, body, _ = ask(port)
        assert (status, body["localEndpoints"], body["serviceProxyHealthy"]) == (503, 0, True)

    def test_503_while_the_datapath_does_not_work_or_cannot_tell(self, port: int):
        well = iter([True, False, True])  # then it ends
        with HealthServer([V4, V6], healthy=lambda: next(well)) as health:
            health.update([check(port)])
            for healthy in (True, False, True, False):
                health.plan([check(port)]).apply()
                status, body, _ = ask(port)
                assert status == (200 if healthy else 503)
                assert (body["localEndpoints"], body["serviceProxyHealthy"]) == (1, healthy)

    def test_each_family_is_told_of_its_own(self, health: HealthServer, port: int):
        health.update([check(port, ipv4=0, ipv6=3)])
        assert ask(port)[0] == 503
        assert ask(port, "::1")[:2] == (
            200,
            {
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": 3,
                "serviceProxyHealthy": True,
            },
        )

    def test_nobody_listens_in_a_family_that_the_service_has_not(self, health: HealthServer, port: int):
        health.update([check(port)])
        assert not refused(port)
        assert refused(port, "::1")

    def test_head_has_no_body(self, health: HealthServer, port: int):
        health.update([check(port)])
        status, body, headers = ask(port, method="HEAD")
        assert (status, body) == (200, {})
        assert int(headers["Content-Length"]) > 0

    def test_what_is_not_http_is_told_so(self, health: HealthServer, port: int):
        health.update([check(port)])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as talk:
            talk.sendall(b"\x16\x03\x01 tls?\r\n\r\n")
            assert talk.recv(100).startswith(b"HTTP/1.1 400 ")


class TestChange:
    def test_answers_follow_and_the_port_stays_open(self, health: HealthServer, port: int):
        health.update([check(port, 1)])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as talk:
            health.update([check(port, 0)])
            talk.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert talk.recv(100).startswith(b"HTTP/1.1 503 ")

    def test_another_port_closes_the_one_before(self, health: HealthServer, ports: Iterator[int]):
        before, after = next(ports), next(ports)
        health.update([check(before)])
        health.update([check(after)])
        assert refused(before)
        assert ask(after)[0] == 200

    def test_a_port_goes_from_one_service_to_another(self, health: HealthServer, port: int):
        health.update([check(port)])
        health.update([check(port, name="shop")])
        assert ask(port)[1]["service"] == {"namespace": "shop", "name": "shop"}

    def test_a_port_that_is_taken_leaves_the_others_served_and_is_tried_again(
        self, health: HealthServer, port: int
    ):
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            health.update([check(taken), check(port)])
            assert ask(port)[0] == 200
            [(place, error)] = health.failed.items()
            assert place == (V4, taken)
            assert isinstance(error, OSError)
            assert health.retry().keys() == {(V4, taken)}
            health.update([check(taken), check(port)])
            assert health.failed.keys() == {(V4, taken)}
        assert health.retry() == health.failed == {}
        assert (ask(taken)[0], ask(port)[0]) == (200, 200)


class TestClients:
    def test_a_slow_one_keeps_nobody_waiting(self, health: HealthServer, port: int):
        health.update([check(port)])
        slow = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(20)]
        try:
            for each in slow:
                each.sendall(b"GET / HT")
            started = time.monotonic()
            assert ask(port)[0] == 200
            assert time.monotonic() - started < 2
        finally:
            for each in slow:
                each.close()

    def test_a_request_without_end_is_cut_off(self, health: HealthServer, port: int):
        health.update([check(port)])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as talk:
            ended = b"?"
            with pytest.raises(ConnectionError):  # noqa: PT012
                for _ in range(1000):
                    talk.sendall(b"x" * 4096)
                ended = talk.recv(1)
                raise ConnectionError("closed") if not ended else AssertionError(ended)
        assert ask(port)[0] == 200


class TestClose:
    def test_leaves_no_thread_and_no_descriptor(self, port: int):
        threads, before = {*threading.enumerate()}, {*os.listdir("/proc/self/fd")}
        server = HealthServer([V4, V6])
        server.update([check(port, 1, 1)])
        talk = socket.create_connection(("127.0.0.1", port), timeout=5)
        ask(port)
        server.close()
        server.close()
        assert talk.recv(1) == b""  # it was hung up on
        talk.close()
        assert refused(port)
        assert {*threading.enumerate()} <= threads
        assert {*os.listdir("/proc/self/fd")} <= before
        with pytest.raises(ClosedError):
            server.update([])


def test_a_plan_says_what_changes_and_carries_it_out(health: HealthServer, ports: Iterator[int]):
    one, two = next(ports), next(ports)
    assert health.plan([]).empty
    plan = health.plan([check(one), check(two, name="api")])
    assert (plan.empty, str(plan)) == (False, "2 health check ports to open, 0 to close")
    assert refused(one)
    report = plan.apply()
    assert (report.added, report.changed, report.removed) == (2, 0, 0)
    assert health.plan([check(two, name="api"), check(one)]).empty
    report = health.plan([check(one, ipv4=0)]).apply()
    assert (report.added, report.changed, report.removed) == (0, 1, 1)
    assert (ask(one)[0], refused(two)) == (503, True)
