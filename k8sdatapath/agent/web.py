"""Answers probes and Prometheus over HTTP."""

from __future__ import annotations

import errno
import json
import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from k8sdatapath.agent.health import Checks, Probe
from k8sdatapath.agent.values import Listen
from k8sdatapath.errors import KernelError
from k8sdatapath.resource import Resource

__all__ = ["WebServer"]

_log = logging.getLogger(__name__)
_JSON, _TEXT = "application/json", "text/plain; charset=utf-8"


class WebServer(Resource):
    """``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``, until it is closed.

    Sockets are made by the caller's thread, in its network namespace.

    :param metrics: their content type and text; None if there are none to tell.
    :raises KernelError: nobody can listen there, most often because somebody else does.
    """

    def __init__(
        self, where: Listen, checks: Checks, metrics: Callable[[], tuple[str, bytes] | None]
    ) -> None:
        class Handler(_Handler):
            answer = staticmethod(lambda path: _answer(path, checks, metrics))

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
            daemon_threads = True
            block_on_close = False

        try:
            self._server = Server((where.host, where.port), Handler)
        except OSError as error:
            hint = "--listen says another address, or none" if error.errno == errno.EADDRINUSE else ""
            raise KernelError("listen at", str(where), error.errno or 0, hint) from error
        host, port = self._server.server_address[:2]
        self.where = Listen(str(host), int(port))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="web", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def __repr__(self) -> str:
        return f"<WebServer http://{self.where}>"


class _Handler(BaseHTTPRequestHandler):
    timeout = 5.0
    server_version, sys_version = "k8sdatapath", ""
    answer: Callable[[str], tuple[HTTPStatus, str, bytes]]

    def do_GET(self) -> None:
        """Answer."""
        status, kind, body = self.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are told at level debug."""
        _log.debug(format, *args, extra={"client": self.client_address[0]})


def _answer(
    path: str, checks: Checks, metrics: Callable[[], tuple[str, bytes] | None]
) -> tuple[HTTPStatus, str, bytes]:
    probe = next((each for each in Probe if path == f"/{each.value}"), None)
    if probe is not None:
        return _told(probe, checks)
    if path == "/metrics":
        told = metrics()
        if told is None:
            return HTTPStatus.NOT_IMPLEMENTED, _TEXT, b"needs an extra: pip install 'k8sdatapath[metrics]'\n"
        return HTTPStatus.OK, *told
    return HTTPStatus.NOT_FOUND, _TEXT, b"/livez /readyz /healthz /metrics\n"


def _told(probe: Probe, checks: Checks) -> tuple[HTTPStatus, str, bytes]:
    findings = checks.ask(probe)
    well = all(finding.well for finding in findings)
    told = {
        "status": "ok" if well else "failed",
        "checks": {finding.name: finding.problem or "ok" for finding in findings},
    }
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    return status, _JSON, json.dumps(told, indent=1).encode() + b"\n"
