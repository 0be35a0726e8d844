"""``doctor`` and ``features`` on this machine, with and without the right to use BPF."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from k8sdatapath.features import known

pytestmark = pytest.mark.kernel

COMMAND = [sys.executable, "-W", "error", "-m", "k8sdatapath.cli"]
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_doctor_finds_root_well() -> None:
    ended = run(*COMMAND, "doctor", "-o", "json")
    checks = {check["name"]: check for check in json.loads(ended.stdout)}
    assert ended.returncode == 0, ended.stdout
    assert {"host", "pod", "reaper", "socket"} <= set(checks["objects"]["detail"].split(", "))
    assert set(known()) <= checks.keys()
    assert (
        checks["lru_hash"]["state"] == checks["acceleration"]["state"] == checks["requests"]["state"] == "ok"
    )
    assert "splice()" in checks["requests"]["detail"]
    assert "UNREADABLE" in checks["requests"]["advice"]


def test_doctor_tells_a_powerless_process_what_it_lacks() -> None:
    ended = run(*POWERLESS, *COMMAND, "doctor", "-o", "json")
    checks = {check["name"]: check for check in json.loads(ended.stdout)}
    assert ended.returncode == 1
    assert checks["capabilities"]["detail"] == "lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"
    assert checks["features"]["state"] == "missing"


def test_features_lists_all_that_is_known() -> None:
    ended = run(*COMMAND, "features", "-o", "json")
    rows = {row["feature"]: row for row in json.loads(ended.stdout)}
    assert sorted(rows) == known()
    assert rows["tc"]["supported"] == "yes"


def test_an_error_is_one_line() -> None:
    ended = run(*POWERLESS, *COMMAND, "features")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "CAP_BPF" in ended.stderr
    assert ended.stderr.count("\n") == 1
