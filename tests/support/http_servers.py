"""Real servers of HTTP, as they are installed, in a pod of a lab, and what requests they see."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from k8sdatapath.lab.lab import Pod
from tests.api.graph import ROOT

__all__ = ["PORT", "SERVERS", "Server", "serving"]

DATA = ROOT / "tests/data/http"
PORT = 8080
BIN = Path(sys.executable).parent

#: How each is started, by name.
SERVERS: dict[str, tuple[str, ...]] = {
    "nginx": ("nginx", "-p", ".", "-c", str(DATA / "nginx.conf")),
    "python": (sys.executable, "-W", "ignore", str(DATA / "python.py"), str(PORT)),
    "gunicorn": (
        *(
            str(BIN / "gunicorn"),
            "--chdir",
            str(DATA),
            "-k",
            "gthread",
            "--threads",
            "4",
            "--keep-alive",
            "9",
        ),
        *("--bind", f"0.0.0.0:{PORT}", "--log-level", "critical", "wsgi:app"),
    ),
    **{
        f"uvicorn-{parser}": (
            *(str(BIN / "uvicorn"), "--app-dir", str(DATA), "--http", parser, "--lifespan", "off"),
            *("--host", "0.0.0.0", "--port", str(PORT), "--log-level", "critical", "asgi:app"),
        )
        for parser in ("h11", "httptools")
    },
    "node": ("node", str(DATA / "node.js"), str(PORT)),
}


class Server:
    """One that is up; ``requests`` is where it notes what it sees."""

    def __init__(self, pod: Pod, requests: Path) -> None:
        self.pod = pod
        self._requests = requests

    def seen(self) -> dict[int, list[tuple[str, str]]]:
        """Methods and targets of all requests, by the port of the client, in order.

        Some note a request behind their answer: all is known when the server has ended.
        """
        found = defaultdict(list)
        for line in self._requests.read_bytes().decode("latin-1").splitlines():
            port, method, target = line.split(" ", 2)
            found[int(port)].append((method, target))
        return found


@contextmanager
def serving(name: str, pod: Pod, directory: Path) -> Iterator[Server]:
    """Start a server in a pod, on port 8080; it is up from the first line on."""
    requests = directory / "requests"
    requests.touch()
    environment = {**os.environ, "REQUESTS": str(requests), "PYTHONDONTWRITEBYTECODE": "1"}
    with pod.popen(SERVERS[name], cwd=directory, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(pod)
            yield Server(pod, requests)
        finally:
            process.terminate()
            process.wait(10)


def _wait(pod: Pod) -> None:
    deadline = time.monotonic() + 10
    while True:
        with suppress(ConnectionRefusedError), pod.tcp(pod.address, PORT):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"no server is up at {pod.address}")
        time.sleep(0.02)
