"""Pods and services by name on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8sdatapath.cli.names import Names
from k8sdatapath.errors import ModelError, SourceError
from k8sdatapath.model import Frontend, Protocol, address

MANIFESTS = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: a, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {nodeName: n1, containers: [{name: web, image: web}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.2}, {ip: "fd00:10:244:1::2"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
"""


@pytest.fixture
def names(tmp_path: Path) -> Names:
    (tmp_path / "all.yaml").write_text(MANIFESTS)
    return Names([tmp_path], None)


def test_addresses_need_no_directory() -> None:
    names = Names((), None)
    assert names.sender("10.244.1.2", 4) == (address("10.244.1.2"), 40000)
    assert names.sender("[fd00::1]:7", 4) == (address("fd00::1"), 7)
    assert names.dialled("10.96.0.10:80/UDP", None, 4) == Frontend("10.96.0.10", 80, "UDP")
    assert names.dialled("[fd00::1]:80", Protocol.UDP, 4) == Frontend("fd00::1", 80, "UDP")
    with pytest.raises(ModelError, match="--kubeconfig FILE, or --source PATH"):
        names.sender("shop/web-1", 4)


@pytest.mark.parametrize(
    ("family", "pod", "service"), [(4, "10.244.1.2", "10.96.0.10"), (6, "fd00:10:244:1::2", "fd00:10:96::10")]
)
def test_names_are_looked_up(names: Names, family: int, pod: str, service: str) -> None:
    assert names.sender("shop/web-1", family) == (address(pod), 40000)
    assert names.dialled("shop/web-1:8080", None, family) == Frontend(pod, 8080, "TCP")
    assert names.dialled("svc/shop/web:80", None, family) == Frontend(service, 80, "TCP")
    assert names.dialled("svc/web:dns", None, family) == Frontend(
        service, 53, "UDP"
    )  # in the sender's namespace


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shop/web-2:80", "there is no pod shop/web-2 among 1; near: shop/web-1"),
        ("svc/shop/wep:80", "there is no service shop/wep among 1; near: shop/web"),
        ("svc/shop/web:81", "service shop/web has no port 81: it has 80/TCP http, 53/UDP dns"),
        ("svc/web:80", "there is no service default/web"),
        ("shop", "'shop' is not a frontend"),
    ],
)
def test_what_is_not_there_is_said(names: Names, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        names.dialled(text, None, 4)


def test_a_sender_is_an_address_or_a_pod(names: Names) -> None:
    assert names.sender("10.244.1.2:41000", 4) == (address("10.244.1.2"), 41000)
    with pytest.raises(ModelError, match=r"'web' is no sender: write 10\.244\.1\.2, "):
        names.sender("web", 4)


def test_a_source_that_does_not_tell_everything_is_refused(tmp_path: Path) -> None:
    from k8sdatapath.kube.directory import Directory
    from k8sdatapath.kube.static_source import StaticSource

    (tmp_path / "wrong.yaml").write_text("kind: [")
    with StaticSource(tmp_path) as source, pytest.raises(SourceError, match="has not told everything"):
        Directory.read(source, timeout=0.1)
