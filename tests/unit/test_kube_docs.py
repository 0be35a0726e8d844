"""The how-to on manifests runs as it is printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from k8sdatapath.datapath.service_table import ServiceTable
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run
from tests.support.api_double import ApiDouble
from tests.support.service_maps import memory
from tests.support.watching import KUBECONFIG, part, service


def without_times(text: str) -> str:
    return "\n".join(line.partition(" in ")[0] for line in text.splitlines())


def test_how_to_static_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    examples = Path(shutil.copytree(ROOT / "examples/manifests", tmp_path / "examples/manifests"))
    before = contents(examples)
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/how-to/static-yaml.md"
    first = re.search(r"^```sh\n(cp .*)\n```$", page.read_text(), flags=re.MULTILINE)
    assert first
    subprocess.run(first[1].split(), check=True)
    told = blocks(page)
    assert len(told) == 6
    names: dict[str, object] = {"services": ServiceTable.bind(memory())}
    for code, output in told:
        assert without_times(run(code, names)) == without_times(output), code
    assert contents(examples) == before, "the page has its reader overwrite files of the project"


def test_how_to_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    kubeconfig = tmp_path / "config"
    with ApiDouble() as api, ServiceTable.bind(memory()) as table, ServiceTable.bind(memory()) as others:
        api.put("services", service("web", namespace="shop"))
        api.put("endpointslices", part("web", "10.244.1.2", namespace="shop"))
        kubeconfig.write_text(KUBECONFIG % api.url)
        names: dict[str, object] = {"kubeconfig": str(kubeconfig), "services": table, "others": others}
        told = blocks(ROOT / "docs/how-to/kubernetes.md")
        assert len(told) == 6
        try:
            for code, output in told:
                assert run(code, names) == output, code
        finally:
            names["reconciler"].close()  # type: ignore[attr-defined]


def test_example_watch_services(tmp_path: Path):
    kubeconfig = tmp_path / "config"
    with ApiDouble() as api:
        api.put("services", service("web", namespace="shop"))
        api.put("endpointslices", part("web", "10.244.1.2", "10.244.1.3", namespace="shop"))
        kubeconfig.write_text(KUBECONFIG % api.url)
        path = ROOT / "examples/watch_services.py"
        assert len(path.read_text().splitlines()) <= 60
        with subprocess.Popen(
            [sys.executable, "-W", "error", str(path), str(kubeconfig)], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                lines = iter(process.stdout)
                assert next(line for line in lines if "at" in line and "2 ready" in line)
                api.put("endpointslices", part("web", "10.244.1.2", namespace="shop"))
                assert next(lines) == "shop/web: at 10.96.0.1, 1 ready\n"
                api.put("services", service("web", port=70000, namespace="shop"))
                assert "70000 is not a port" in next(lines)
                api.delete("services", "shop", "web")
                assert next(lines) == "shop/web: no Service, 1 ready\n"
            finally:
                process.terminate()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
