"""The how-to on manifests runs as it is printed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from k8sdatapath.datapath.service_table import ServiceTable
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run
from tests.support.api_double import ApiDouble
from tests.support.watching import KUBECONFIG, part, service
from tests.unit.test_service_table import memory


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


def test_how_to_kubernetes(tmp_path: Path):
    kubeconfig = tmp_path / "config"
    with ApiDouble() as api, ServiceTable.bind(memory()) as table, ServiceTable.bind(memory()) as others:
        api.put("services", service("web", namespace="shop"))
        api.put("endpointslices", part("web", "10.244.1.2", namespace="shop"))
        kubeconfig.write_text(KUBECONFIG % api.url)
        names: dict[str, object] = {"kubeconfig": str(kubeconfig), "services": table, "others": others}
        told = blocks(ROOT / "docs/how-to/kubernetes.md")
        assert len(told) == 4
        try:
            for code, output in told:
                assert run(code, names) == output, code
        finally:
            names["reconciler"].close()  # type: ignore[attr-defined]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
