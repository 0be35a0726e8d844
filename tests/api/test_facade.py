"""``import k8sdatapath``: what it offers, and what it costs."""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

import k8sdatapath
from tests.api.graph import ROOT, modules

FORBIDDEN = {
    "kubernetes",
    "pyroute2",
    "netaddr",
    "rich",
    "typer",
    "numpy",
    "yaml",
    "_cffi_backend",
    "msgspec",
    "urllib3",
}

PROBE = """
import json, sys, time
start = time.perf_counter()
import k8sdatapath
took = time.perf_counter() - start
print(json.dumps({"took": took, "modules": sorted(sys.modules)}))
"""


def fresh(code: str, *, prefix: Sequence[str] = ()) -> str:
    """Run code in a fresh interpreter, from the source tree."""
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=60).stdout


@pytest.mark.alone
def test_import_is_fast_and_pulls_in_nothing_heavy() -> None:
    runs = [json.loads(fresh(PROBE)) for _ in range(3)]
    loaded = set(runs[0]["modules"])
    assert not {name for name in loaded if name.split(".")[0] in FORBIDDEN}
    assert "k8sdatapath.pybpf" not in loaded
    assert min(run["took"] for run in runs) < 0.1


def test_import_needs_neither_root_nor_the_extension() -> None:
    code = """
import sys
sys.modules["k8sdatapath.pybpf._libbpf"] = None
import k8sdatapath
print(k8sdatapath.Service("10.96.0.10", 80, backends=[k8sdatapath.Backend("10.244.1.2", 8080)]))
"""
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    assert fresh(code, prefix=powerless).strip() == "10.96.0.10:80/TCP"


def test_every_public_name_resolves_and_is_listed() -> None:
    for name in k8sdatapath.__all__:
        assert getattr(k8sdatapath, name) is not None
        assert name in dir(k8sdatapath)
    with pytest.raises(AttributeError, match="no attribute 'Sevrice'"):
        _ = k8sdatapath.Sevrice  # type: ignore[attr-defined]


def test_checkers_and_the_interpreter_see_the_same_names() -> None:
    block = next(node for node in modules()["k8sdatapath"].body if isinstance(node, ast.If))
    static = {
        alias.name: node.module if node.module != "k8sdatapath" else f"k8sdatapath.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert static == k8sdatapath._HOMES
    assert k8sdatapath.__all__ == sorted(static.keys() - vars(builtins).keys())


def test_to_import_everything_takes_no_builtin_away() -> None:
    assert set(k8sdatapath.__all__) & vars(builtins).keys() == set()
    assert k8sdatapath.compile.__module__ == "k8sdatapath.compiler"


def test_every_dunder_all_is_true() -> None:
    """That each is sorted is ruff's to say (RUF022)."""
    for module in modules().keys() - {"k8sdatapath.pybpf._libbpf"}:
        imported = importlib.import_module(module)
        names = getattr(imported, "__all__", [])
        assert len(names) == len(set(names)), module
        assert [name for name in names if not hasattr(imported, name)] == [], module
