"""A watch connects in the ways that kubectl does, tries again with patience, and ends when it is told to."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import evolve
from kubernetes.config import incluster_config

from k8sdatapath.errors import ClosedError, SourceError
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.watch import KubeWatch
from tests.support.api_double import ApiDouble
from tests.support.api_requests import Query, Refusal
from tests.support.watching import HASTY, KUBECONFIG, Listener, Watch, client, follow, service, wait


class TestPatience:
    """It does not give up, and it does not make things worse."""

    def test_retry_after_is_kept_to(self, double: ApiDouble, watch: Watch) -> None:
        refused: list[float] = []

        def refuse(query: Query) -> None:
            if not refused:
                refused.append(time.monotonic())
                raise Refusal(429, "TooManyRequests", retry_after=1)

        double.refuse = refuse
        follow(watch(patience=evolve(HASTY, most=10.0)))
        assert double.requests[1].started - refused[0] > 0.9

    @pytest.mark.parametrize("trouble", ["refused", "dropped", "ended", "gone", "garbage"])
    def test_no_trouble_makes_it_spin(self, double: ApiDouble, watch: Watch, trouble: str) -> None:
        """Half a second, in which the waits are 25, 50, 100 and then 200 ms at the least."""
        double.put("services", service("web"))

        def refuse(query: Query) -> None:
            if trouble == "refused":
                raise Refusal(500, "InternalError")
            if trouble == "dropped":
                raise ConnectionError
            if query.watch:
                query.options["timeoutSeconds"] = "0" if trouble == "ended" else "9"
                query.options["resourceVersion"] = (
                    "1" if trouble == "gone" else query.options["resourceVersion"]
                )

        double.refuse = refuse
        double.bookmarks = 0.001
        double.spoil = lambda line: [b"?\n"] if trouble == "garbage" else [line]
        source = watch(patience=evolve(HASTY, first=0.05, most=0.4))
        listener = Listener(source)
        listener.until(lambda: len(double.requests) > 1)
        listener.take()
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            listener.take()
        in_time = [each for each in double.requests if each.started < deadline]
        assert 2 <= len(in_time) <= 2 * 6

    def test_an_api_that_is_away_for_long(self, double: ApiDouble, watch: Watch) -> None:
        double.put("services", service("web"))
        source = watch()
        listener = follow(source)
        double.down()
        cpu = time.process_time()
        listener.quiet(1.5)
        assert time.process_time() - cpu < 0.5
        assert listener.synced
        assert listener.ports() == {"web": 80}
        assert "refused" in source.status["services"].error.lower()
        double.put("services", service("web", 81))
        double.up()
        listener.until(lambda: listener.ports() == {"web": 81})


class TestClosing:
    """``watch`` checks that it takes less than a second, and that no thread is left."""

    def test_twice_and_from_another_thread(self, watch: Watch) -> None:
        source = watch()
        listener = follow(source)
        closing = threading.Timer(0.1, source.close)
        closing.start()
        with pytest.raises(StopIteration):
            listener.until(lambda: False)
        closing.join()
        source.close()
        assert "closed" in repr(source)
        with pytest.raises(ClosedError):
            next(source.batches())

    def test_before_it_began(self, watch: Watch) -> None:
        watch().close()

    def test_while_the_server_does_not_answer(self, double: ApiDouble, watch: Watch) -> None:
        double.stall()
        source = watch("services", "nodes", patience=Patience())
        Listener(source).take()
        wait(lambda: len(double.requests) == 2)
        source.close()

    def test_while_a_watch_is_quiet(self, double: ApiDouble, watch: Watch) -> None:
        double.bookmarks = 60
        source = watch("services", "nodes", patience=Patience())
        follow(source)
        source.close()

    def test_while_it_waits_to_try_again(self, double: ApiDouble, watch: Watch) -> None:
        double.down()
        source = watch(patience=Patience(first=60, most=60))
        listener = Listener(source)
        listener.until(lambda: source.status["services"].errors)
        source.close()

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_while_nobody_says_hello(self, watch: Watch, double: ApiDouble, scheme: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            real = client(double)
            real.configuration.host = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}"
            with timed_close(KubeWatch(real, ["services"])) as source:
                Listener(source).take()
                connection, _ = mute.accept()
                connection.recv(1)  # TLS, or a request, has begun
            connection.close()

    def test_while_it_connects_to_nowhere(self, double: ApiDouble) -> None:
        with socket.socket() as full, socket.socket() as one, socket.socket() as two:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for each in one, two:  # what more there comes is not answered
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            real = client(double)
            real.configuration.host = f"http://127.0.0.1:{full.getsockname()[1]}"
            with timed_close(KubeWatch(real, ["services"])) as source:
                Listener(source).take()
                time.sleep(0.1)


@contextmanager
def timed_close(source: KubeWatch) -> Iterator[KubeWatch]:
    yield source
    start = time.monotonic()
    source.close()
    assert time.monotonic() - start < Patience().connect + 1  # only to connect is it waited for


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    )
    subprocess.run(
        [
            *command.split(),
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            path,
            "-out",
            f"{path}.crt",
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


class TestConnecting:
    def test_in_a_pod(self, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        token = tmp_path / "token"
        token.write_text("secret")
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", f"{certificate}.crt")
        with ApiDouble(tls=certificate, token="secret") as double:
            monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(double.port))
            double.put("services", service("web"))
            with KubeWatch.in_cluster(["services"], patience=HASTY) as source:
                listener = follow(source)
                assert listener.ports() == {"web": 80}
                double.put("services", service("web", 81))
                listener.until(lambda: listener.ports() == {"web": 81})
                double.cut()
                double.put("services", service("web", 82))
                listener.until(lambda: listener.ports() == {"web": 82})

    def kubeconfig(self, tmp_path: Path, double: ApiDouble, token: str) -> Path:
        path = tmp_path / "config"
        cluster: dict[str, str] = {"server": double.url}
        if double.tls:
            cluster["certificate-authority"] = f"{double.tls}.crt"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "here",
        }
        path.write_text(json.dumps(content))
        return path

    def test_by_a_kubeconfig(self, certificate: Path, tmp_path: Path) -> None:
        with ApiDouble(tls=certificate, token="secret") as double:
            double.put("services", service("web"))
            path = self.kubeconfig(tmp_path, double, "secret")
            with KubeWatch.from_kubeconfig(path, "here", ["services"], patience=HASTY) as source:
                assert follow(source).ports() == {"web": 80}
            with pytest.raises(SourceError, match="elsewhere"):
                KubeWatch.from_kubeconfig(path, "elsewhere")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "No such file or directory"),
            ("", "file is empty"),
            ("hello", "it is not the mapping that it should be"),
            ("clusters: [", "cannot be read as a kubeconfig: while parsing a flow node"),
            ("clusters: []", "Expected key current-context"),
            (KUBECONFIG.replace("cluster: double, user", "cluster: nosuch, user") % "", "name nosuch in"),
            (KUBECONFIG % "not a url", "'not a url' is not where an API server is: https://HOST:PORT"),
            (KUBECONFIG % "ftp://192.0.2.1", "'ftp://192.0.2.1' is not where an API server is"),
        ],
    )
    def test_what_is_wrong_with_one_is_said_in_a_line(
        self, tmp_path: Path, text: str | None, message: str
    ) -> None:
        path = tmp_path / "config"
        if text is not None:
            path.write_text(text)
        with pytest.raises(SourceError, match=re.escape(message)) as refused:
            KubeWatch.from_kubeconfig(path)
        assert "\n" not in str(refused.value)

    def test_a_wrong_token_is_said(self, tmp_path: Path) -> None:
        with ApiDouble(token="secret") as double:
            path = self.kubeconfig(tmp_path, double, "guess")
            with KubeWatch.from_kubeconfig(path, resources=["services"], patience=HASTY) as source:
                listener = Listener(source)
                listener.until(lambda: "401 Unauthorized" in source.status["services"].error)

    def test_a_wrong_certificate_is_said(self, certificate: Path) -> None:
        with (
            ApiDouble(tls=certificate) as double,
            KubeWatch(client(double), ["services"], patience=HASTY) as source,
        ):
            listener = Listener(source)
            listener.until(lambda: "CERTIFICATE_VERIFY_FAILED" in source.status["services"].error)

    def test_nowhere_to_connect_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        with pytest.raises(SourceError, match="not in a cluster"):
            KubeWatch.in_cluster()
        for content in "", "kind: [", "a: b":
            path = tmp_path / "broken"
            path.write_text(content)
            with pytest.raises(SourceError, match="broken"):
                KubeWatch.from_kubeconfig(path)
        with pytest.raises(SourceError, match="missing"):
            KubeWatch.from_kubeconfig(tmp_path / "missing")
