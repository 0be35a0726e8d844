"""``k8sdatapath apply`` over a table in memory: what it prints when, and what it survives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.datapath.service_plan import ServicePlan
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import KernelError
from k8sdatapath.kube import StaticYaml
from k8sdatapath.model import network
from k8sdatapath.node import Node, NodeConfig
from tests.api.graph import ROOT
from tests.support.service_maps import memory

Edit = Callable[[], object]

NETWORKS = network("10.96.0.0/12"), network("fd00:10:96::/112")


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "examples" / "manifests", tmp_path / "manifests"))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ServiceTable:
    """What ``apply`` writes to. The examples fit, and one service more."""
    table = ServiceTable.bind(memory(frontends=5), service_networks=NETWORKS)

    class Opened(AbstractContextManager["Opened"]):
        services = table
        config = NodeConfig()

        def prune(self) -> None:
            pass

        def check_pins(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(Node, "open", lambda config, prune: Opened())
    return table


def after(monkeypatch: pytest.MonkeyPatch, *edits: Edit) -> None:
    """A watch sees the files as they are after each of these edits, and ends."""

    def watch(source: StaticYaml, on_error: object) -> Iterator[object]:
        for edit in (lambda: None, *edits):
            edit()
            yield source.read()

    monkeypatch.setattr(StaticYaml, "watch", watch)


def run(manifests: Path, *arguments: str) -> tuple[int, str, str]:
    options = ["-f", str(manifests), "--pins", str(manifests / "pins"), *arguments]
    result = CliRunner().invoke(app, ["apply", *options])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("veth0", "is not DEVICE=MAC"),
        ("veth0=02:00:0a:f4:01:02", "is not DEVICE=MAC"),
        ("veth0=02:00:0a:f4:01,10.244.1.2", "is not a MAC"),
        ("veth0=02:00:0a:f4:01:0g,10.244.1.2", "is not a MAC"),
        ("veth0=02:00:0a:f4:01:02,10.244.1", "is not an IP address"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_wrong_pod_device_is_refused_before_anything_is_done(
    manifests: Path, table: ServiceTable, device: str, said: str, more: list[str]
) -> None:
    code, out, err = run(manifests, f"--pod-device={device}", *more)
    assert (code, out, table.dump()) == (2, "", ())
    assert said in " ".join(err.replace("│", "").split())


def test_the_plan_is_printed_before_it_is_applied(
    manifests: Path, table: ServiceTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(plan: ServicePlan) -> None:
        raise KernelError("update", "kd_frontends", 12)

    monkeypatch.setattr(ServicePlan, "apply", refused)
    code, out, err = run(manifests)
    assert code == 1
    assert out.endswith("4 to change, 0 as wanted\n")
    assert err == "error: update: kd_frontends: Cannot allocate memory [ENOMEM]\n"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_is_passed_over_is_said(manifests: Path, table: ServiceTable, more: list[str]) -> None:
    web = manifests / "web.yaml"
    web.write_text(web.read_text().replace("discovery.k8s.io/v1\n", "discovery.k8s.io/v1beta1\n", 1))
    code, _, err = run(manifests, *more)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("note: passed over: 1 EndpointSlice of discovery.k8s.io/v1beta1 (")


def emptied(manifests: Path) -> None:
    for path in manifests.iterdir():
        path.unlink()


def test_an_empty_directory_removes_nothing_unless_it_is_said(manifests: Path, table: ServiceTable) -> None:
    assert run(manifests)[0] == 0
    emptied(manifests)
    code, out, err = run(manifests)
    assert (code, out, len(table)) == (1, "", 4)
    assert err.startswith("error: no service to balance in ")
    assert err.endswith("to remove those there are, say --allow-empty\n")
    code, out, _ = run(manifests, "--allow-empty")
    assert (code, len(table)) == (0, 0)
    assert "0 added, 0 changed, 4 removed" in out


def test_a_watch_keeps_what_is_there_when_the_directory_is_empty(
    manifests: Path, table: ServiceTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, lambda: emptied(manifests))
    code, _, err = run(manifests, "--watch")
    assert (code, len(table)) == (0, 4)
    assert "say --allow-empty" in err
    code, _, err = run(manifests, "--watch", "--allow-empty")
    assert (code, err, len(table)) == (0, "", 0)


def too_many(manifests: Path) -> None:
    web = (manifests / "web.yaml").read_text()
    more = web.replace("name: web", "name: more").replace("10.96.0.10", "10.96.0.11")
    (manifests / "more.yaml").write_text(more.replace("fd00:10:96::10", "fd00:10:96::11"))


def test_a_watch_survives_what_does_not_fit_and_says_so(
    manifests: Path, table: ServiceTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(
        monkeypatch,
        lambda: too_many(manifests),
        lambda: (manifests / "more.yaml").unlink(),
        lambda: (manifests / "web.yaml").unlink(),
    )
    code, out, err = run(manifests, "--watch")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("error: ")
    assert "fit: 1 too many; nothing was changed" in err
    lines = [line for line in out.splitlines() if not line.startswith(("+", "-"))]
    assert [line.partition(" in ")[0] for line in lines] == [
        "4 to change, 0 as wanted",
        "4 added, 0 changed, 0 removed",
        "2 to change, 2 as wanted",
        "0 added, 0 changed, 2 removed",
    ]


def test_a_watch_prints_a_json_document_per_line(
    manifests: Path, table: ServiceTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, (manifests / "web.yaml").unlink)
    code, out, _ = run(manifests, "--watch", "-o", "json")
    first, second = map(json.loads, out.splitlines())
    assert (code, first["report"]["added"], second["report"]["removed"]) == (0, 4, 2)
    assert [change["after"] for change in second["changes"]] == [None, None]
    code, out, _ = run(manifests, "-o", "json")
    assert json.loads(out)["unchanged"] == 2
    assert out.count("\n") > 1
