"""Probes and metrics over HTTP, and how log lines look."""

from __future__ import annotations

import http.client
import io
import json
import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from k8sdatapath.agent.health import Checks, Probe
from k8sdatapath.agent.log import set_up
from k8sdatapath.agent.metrics import Metrics
from k8sdatapath.agent.values import Listen, LogFormat
from k8sdatapath.agent.web import WebServer
from k8sdatapath.errors import KernelError
from tests.support.watching import wait

ANY = Listen("127.0.0.1", 0)


@pytest.fixture
def checks() -> Checks:
    return Checks()


@pytest.fixture
def web(checks: Checks) -> Iterator[WebServer]:
    with WebServer(ANY, checks, Metrics().text) as web:
        yield web


def ask(web: WebServer, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(web.where.host, web.where.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_each_probe_has_its_checks_and_health_has_all(web: WebServer, checks: Checks) -> None:
    ready = ["the services have not been programmed yet"]
    checks.add("thread", lambda: "", Probe.LIVE)
    checks.add("services", lambda: ready[0], Probe.READY)
    assert ask(web, "/livez")[0] == 200
    for path in ("/readyz", "/healthz"):
        status, body = ask(web, path)
        assert (status, json.loads(body)["checks"]["services"]) == (503, ready[0])
    ready[0] = ""
    assert json.loads(ask(web, "/healthz")[1]) == {
        "status": "ok",
        "checks": {"services": "ok", "thread": "ok"},
    }
    assert ask(web, "/readyz?verbose")[0] == 200
    assert ask(web, "/readyz", "HEAD") == (200, "")
    assert ask(web, "/")[0] == 404
    assert ask(web, "/readyz", "POST")[0] == 501


def test_a_check_that_fails_is_a_problem_and_not_an_outage(web: WebServer, checks: Checks) -> None:
    checks.add("odd", lambda: str(1 / 0), Probe.LIVE)
    assert ask(web, "/livez")[0] == 503
    assert "division by zero" in ask(web, "/healthz")[1]


def test_metrics_tell_of_the_process_and_what_is_added(web: WebServer) -> None:
    status, body = ask(web, "/metrics")
    assert status == 200
    assert "k8sdatapath_build_info{version=" in body
    assert "process_resident_memory_bytes" in body


def test_without_the_extra_metrics_say_what_to_install(checks: Checks) -> None:
    with WebServer(ANY, checks, lambda: None) as web:
        assert ask(web, "/metrics") == (501, "needs an extra: pip install 'k8sdatapath[metrics]'\n")


def test_a_port_that_is_taken_is_told(checks: Checks) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Listen("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(KernelError, match=f"listen at: {where}: Address already in use"):
            WebServer(where, checks, lambda: None)


def test_both_families_and_no_thread_left(checks: Checks) -> None:
    before = {*threading.enumerate()}
    with WebServer(Listen("::1", 0), checks, lambda: None) as web:
        assert ask(web, "/livez")[0] == 200
        assert str(web.where).startswith("[::1]:")
    web.close()
    wait(lambda: {*threading.enumerate()} <= before)  # one has yet to end that has answered already


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        yield io.StringIO()
    finally:
        root.handlers, root.level = before, level
        logging.captureWarnings(False)


def test_log_lines_are_objects_or_sentences(logged: io.StringIO) -> None:
    log = logging.getLogger("k8sdatapath.test")
    set_up("info", LogFormat.JSON, logged)
    log.info("pod %s attached", "shop/web", extra={"device": "v1"})
    log.debug("not told")
    line = json.loads(logged.getvalue())
    assert (line["message"], line["level"], line["device"]) == ("pod shop/web attached", "info", "v1")
    assert line["time"].endswith("Z")

    logged.truncate(0)
    set_up("debug", LogFormat.TEXT, logged)
    try:
        raise ValueError("no\nnewline")
    except ValueError:
        log.exception("failed", extra={"device": "v1", "pod": ""})
    first, *trace = logged.getvalue().lstrip("\0").splitlines()
    assert first.endswith("error failed device=v1")
    assert trace[0].startswith("Traceback")
