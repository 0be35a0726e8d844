"""What has made a pod, as its object tells."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.decode import decode
from k8sdatapath.kube.objects import KubePod


def owner_of(*references: Any, template_hash: str = "5c9f") -> tuple[str, str] | None:
    labels = {"app": "web"} | ({"pod-template-hash": template_hash} if template_hash else {})
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-1", "labels": labels, "ownerReferences": list(references)},
        "spec": {"nodeName": "n1"},
        "status": {"podIP": "10.0.0.1"},
    }
    (pod,) = decode(document, "here", Counter())
    assert isinstance(pod, KubePod)
    return pod.owner


def reference(kind: str, name: str, controller: bool | None = True) -> dict[str, Any]:
    return {"kind": kind, "name": name, "controller": controller}


@pytest.mark.parametrize(
    ("kind", "name", "owner"),
    [
        ("ReplicaSet", "web-5c9f", ("Deployment", "web")),
        ("ReplicaSet", "web-front-5c9f", ("Deployment", "web-front")),
        ("ReplicaSet", "web", ("ReplicaSet", "web")),
        ("StatefulSet", "db-5c9f", ("StatefulSet", "db-5c9f")),
        ("Job", "nightly-28", ("Job", "nightly-28")),
    ],
)
def test_a_pod_belongs_to_what_controls_it(kind: str, name: str, owner: tuple[str, str]) -> None:
    assert owner_of(reference("Node", "n1", None), reference(kind, name)) == owner


def test_a_replica_set_of_its_own_is_an_owner_itself() -> None:
    assert owner_of(reference("ReplicaSet", "web-5c9f"), template_hash="") == ("ReplicaSet", "web-5c9f")


def test_without_a_controller_a_pod_belongs_to_nothing() -> None:
    assert owner_of() is None
    assert owner_of(reference("Foo", "x", False)) is None


def test_an_owner_without_a_name_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"ownerReferences\[0\].name: missing"):
        owner_of({"kind": "Job", "controller": True})
