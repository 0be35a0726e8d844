"""deploy/: what Kubernetes would refuse or pass over in silence is found here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from k8sdatapath.agent.config import AgentConfig
from tests.api.graph import ROOT

DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "base"
MODELS = {
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "V1ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "V1ClusterRoleBinding",
    ("apps/v1", "DaemonSet"): "V1DaemonSet",
}
PLAIN = {"str": str, "int": int, "bool": bool, "object": object, "float": (int, float)}


@cache
def documents() -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    return [
        each for name in kustomization["resources"] for each in yaml.safe_load_all((BASE / name).read_text())
    ]


def one(kind: str) -> dict[str, Any]:
    (found,) = (each for each in documents() if each["kind"] == kind)
    return found


def problems(value: Any, kind: str, path: str) -> list[str]:
    """What of a value the official client's model of it does not know, or has otherwise."""
    if (inner := re.fullmatch(r"[Ll]ist\[(.*)\]", kind)) and isinstance(value, list):
        return [each for n, item in enumerate(value) for each in problems(item, inner[1], f"{path}[{n}]")]
    if (inner := re.fullmatch(r"[Dd]ict[(\[]str, (.*)[)\]]", kind)) and isinstance(value, dict):
        return [each for key, item in value.items() for each in problems(item, inner[1], f"{path}.{key}")]
    if kind in PLAIN:
        return [] if isinstance(value, PLAIN[kind]) else [f"{path}: {value!r} is not {kind}"]
    model = getattr(client, kind, None)
    if model is None or not isinstance(value, dict):
        return [f"{path}: {value!r} is not {kind}"]
    fields = {json: model.openapi_types[name] for name, json in model.attribute_map.items()}
    found = [f"{path}.{key}: {kind} has no such field" for key in value if key not in fields]
    for key in value.keys() & fields.keys():
        found += problems(value[key], fields[key], f"{path}.{key}")
    try:  # the model itself knows what must be there
        model(**{name: value.get(json) for name, json in model.attribute_map.items()})
    except ValueError as error:
        found.append(f"{path}: {error}")
    return found


def test_every_object_is_as_the_api_has_it() -> None:
    for each in documents():
        model = MODELS[each["apiVersion"], each["kind"]]
        assert problems(each, model, each["kind"]) == []


@pytest.mark.parametrize(
    ("where", "wrong", "told"),
    [
        ("hostNetwrk", True, "V1PodSpec has no such field"),
        ("hostNetwork", "yes", "'yes' is not bool"),
        ("containers", [{"image": "x"}], "spec.containers[0]: "),
    ],
)
def test_the_check_finds_mistakes(where: str, wrong: object, told: str) -> None:
    daemonset = yaml.safe_load((BASE / "daemonset.yaml").read_text())
    daemonset["spec"]["template"]["spec"][where] = wrong
    assert told in "\n".join(problems(daemonset, "V1DaemonSet", "DaemonSet"))


def test_every_file_of_the_base_is_in_it() -> None:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    (generated,) = kustomization["configMapGenerator"]
    told = {"kustomization.yaml", *kustomization["resources"], *generated["files"]}
    assert told == {path.name for path in BASE.iterdir()}


def test_the_daemonset_runs_an_agent_that_it_can_reach() -> None:
    pod = one("DaemonSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = AgentConfig.load(BASE / "agent.yaml", {"nodeName": "n1"})
    assert config.ignored == ()
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert "--config=/etc/k8sdatapath/agent.yaml" in container["args"]
    assert volumes[mounts[str(config.cgroup)]]["hostPath"]["path"] == "/sys/fs/cgroup"
    assert volumes[mounts[str(config.pins.parent)]]["hostPath"]["path"] == "/sys/fs/bpf"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert f"{asked['host']}:{asked['port']}" == str(config.listen)
        assert asked["path"] in ("/livez", "/readyz")
    names = {
        kustomized["name"]
        for kustomized in yaml.safe_load((BASE / "kustomization.yaml").read_text())["images"]
    }
    assert container["image"] in names
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    assert not container["securityContext"]["privileged"]


def test_the_role_is_bound_to_the_account_that_the_pods_have() -> None:
    binding, account = one("ClusterRoleBinding"), one("ServiceAccount")["metadata"]["name"]
    assert binding["roleRef"]["name"] == one("ClusterRole")["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [account]
    assert one("DaemonSet")["spec"]["template"]["spec"]["serviceAccountName"] == account


def test_the_image_is_built_of_what_is_there_and_runs_without_a_compiler() -> None:
    lines = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    stages = [n for n, line in enumerate(lines) if line.startswith("FROM ")]
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            _, *sources, _ = line.split()
            assert all((ROOT / source).exists() for source in sources), line
    running = "\n".join(lines[stages[-1] :])
    assert not re.search(r"clang|gcc|-dev\b", running)
    assert "libbpf1" in running
    copied = {Path(source) for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]}
    needed = {
        "pyproject.toml",
        "setup.py",
        "bpf",
        "csrc",
        "k8sdatapath",
        "examples/manifests",
        "README.md",
        "LICENSE",
    }
    assert needed <= {str(path) for path in copied}
