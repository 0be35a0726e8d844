"""The command line as its users meet it: what it prints, where, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from k8sdatapath.cli import doctor, services
from k8sdatapath.cli.agent import heeding
from k8sdatapath.cli.app import app
from k8sdatapath.cli.output import Output, show, show_value
from k8sdatapath.datapath.l7_view import L7View
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import ContractError, KernelError
from k8sdatapath.model import Backend, Exposure, Service
from tests.support.service_maps import memory

ROWS = [{"frontend": "10.96.0.10:80/TCP", "backends": ["10.244.1.2:8080", "10.244.1.3:8080"], "state": "ok"}]


def test_a_table_is_aligned_whole_and_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"name": "a", "detail": "x" * 300}, {"name": "[red]", "detail": ""}], Output.TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME   DETAIL", "a      " + "x" * 300, "[red]"]


def test_yaml_says_again_what_is_there_twice(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [{"step": "frontend"}]
    show_value({"steps": steps, "stages": [steps]}, Output.YAML)
    assert capsys.readouterr().out == "---\nsteps:\n- step: frontend\nstages:\n- - step: frontend\n"


@pytest.mark.parametrize(("output", "load"), [(Output.JSON, json.loads), (Output.YAML, yaml.safe_load)])
def test_json_and_yaml_say_the_same(
    output: Output, load: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    show(ROWS, output)
    assert load(capsys.readouterr().out) == ROWS


def test_no_rows_are_a_word_or_an_empty_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show([], Output.JSON)
    show([], Output.TABLE)
    assert capsys.readouterr().out == "[]\nnone\n"


def test_doctor_names_each_part_of_the_machine() -> None:
    result = CliRunner().invoke(app, ["doctor", "-o", "json"])
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["kernel"]["state"] == "ok"
    assert checks["libbpf"]["detail"].startswith("v")
    assert {"btf", "jit", "capabilities", "bpffs", "cgroup2", "objects"} <= checks.keys()
    needed = [check for check in checks.values() if check["state"] == "missing"]
    assert result.exit_code == (1 if needed else 0)
    assert all(check["advice"] for check in needed)


def test_doctor_says_what_to_do_about_what_is_missing(tmp_path: Path) -> None:
    off = tmp_path / "bpf_jit_enable"
    off.write_text("0\n")
    assert doctor.jit(off).advice == "sysctl -w net.core.bpf_jit_enable=1"
    assert doctor.btf(tmp_path / "vmlinux").state == "absent"
    assert doctor.objects(tmp_path).advice == "in a checkout: make build"
    older = doctor.acceleration({"sock_redirect": "6.12.75", "netfilter": "6.4"})
    assert (older.state, older.advice) == ("absent", "Linux 6.12.75 or newer")
    assert older.detail == "not here: no sock_redirect"
    older = doctor.requests({"sock_destroy": "6.5", "netfilter": "6.4"})
    assert (older.state, older.detail) == ("absent", "not here: no sock_destroy")


def test_an_error_is_one_line_and_a_traceback_only_with_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(output: Output) -> bool:
        raise KernelError("attach to tcx ingress", "eth0", 19, "is it there?")

    monkeypatch.setattr(doctor, "run", fail)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert result.stderr == "error: attach to tcx ingress: eth0: No such device [ENODEV] (is it there?)\n"
    assert isinstance(CliRunner().invoke(app, ["--debug", "doctor"]).exception, KernelError)


def test_what_the_machine_refuses_is_told_as_the_rest_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["policy", "check", str(tmp_path / "nothing")])
    assert (result.exit_code, result.stderr) == (1, f"error: {tmp_path}/nothing: No such file or directory\n")


def test_who_may_not_look_is_told_what_it_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    result = CliRunner().invoke(app, ["services", "list", "--pins", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: read pin directory: {tmp_path}: Permission denied [EACCES] (")


def test_what_a_datapath_was_not_told_to_do_is_named() -> None:
    others = dict.fromkeys(map(str, range(9)), memory()["kd_slots"])
    with pytest.raises(ContractError, match=r"kd_l7_conns.*has 9 others \(a node has them with l7=True"):
        L7View.bind(others)


def test_a_wrong_command_line_ends_with_2() -> None:
    result = CliRunner().invoke(app, ["doctor", "-o", "xml"])
    assert result.exit_code == 2
    assert "xml" in result.stderr


@pytest.mark.parametrize("extra", ["typer", "rich"])
def test_without_its_extra_the_command_says_what_to_install(extra: str) -> None:
    code = f"import sys; sys.modules[{extra!r}] = None; from k8sdatapath.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr == "the command line needs an extra: pip install 'k8sdatapath[cli]'\n"


def test_services_are_listed_with_what_rules_each_frontend(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ServiceTable.bind(memory())
    table.upsert(
        Service(
            "10.96.0.10",
            80,
            backends=[Backend("10.244.1.2", 8080)],
            exposed=[
                Exposure("node_port", "192.0.2.11", 30080),
                Exposure("load_balancer", "203.0.113.1", 80),
            ],
            external_local=True,
            affinity_timeout=60,
            source_ranges=["198.51.100.0/24"],
        )
    )
    monkeypatch.setattr(services, "pinned", lambda directory: table)
    result = CliRunner().invoke(app, ["services", "list", "-o", "json"])
    assert [(row["kind"], row["rules"]) for row in json.loads(result.stdout)] == [
        ("cluster_ip", ["affinity 60 s"]),
        ("node_port", ["local", "affinity 60 s"]),
        ("load_balancer", ["local", "affinity 60 s", "from 198.51.100.0/24"]),
    ]


def test_a_signal_does_not_wait_for_whom_it_interrupts() -> None:
    former = signal.getsignal(signal.SIGHUP)
    busy, heard = threading.Lock(), threading.Semaphore(0)

    def hear() -> None:
        if busy.acquire(timeout=10):
            busy.release()
            heard.release()

    try:
        with heeding({signal.SIGHUP: hear}):
            with busy:
                signal.raise_signal(signal.SIGHUP)
                signal.raise_signal(signal.SIGHUP)
            assert heard.acquire(timeout=10)
            assert heard.acquire(timeout=10)
        signal.raise_signal(signal.SIGHUP)
        assert not heard.acquire(blocking=False)
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(
    ("family", "said"), [([], "no maps"), (["--family=6"], "no maps"), (["--family=5"], "neither")]
)
def test_explain_takes_a_family_or_none(family: list[str], said: str, tmp_path: Path) -> None:
    asked = ["explain", "--from", "10.244.1.2", "--to", "10.96.0.10:80", f"--pins={tmp_path}", *family]
    result = CliRunner().invoke(app, asked)
    assert said in f"{result.output} {result.exception}"
