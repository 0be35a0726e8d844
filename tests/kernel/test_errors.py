"""Errors, each provoked for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8sdatapath import features
from k8sdatapath.compiler import compile
from k8sdatapath.errors import NotSupportedError, ObjectError, VerifierError
from k8sdatapath.pybpf.calls import check
from tests.support.nobody import as_nobody

DATA = Path(__file__).parent.parent / "data"


def test_the_verifier_s_reason_is_the_message_and_the_log_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(VerifierError) as caught:
        compile(DATA / "rejected.bpf.c").load()
    error = caught.value
    assert error.program == "careless"
    assert "outside of the packet" in str(error)
    assert "data[100]" in error.log
    assert "invalid access to packet" in error.log
    assert capfd.readouterr() == ("", "")


def test_without_capabilities_the_error_says_which() -> None:
    code = (
        "import sys\n"
        "from k8sdatapath.objects import ObjectSpec\n"
        "from k8sdatapath.errors import PermissionDeniedError\n"
        "try:\n"
        "    ObjectSpec.from_file('pod').load()\n"
        "except PermissionDeniedError as error:\n"
        "    print(error)\n"
    )
    done = as_nobody(code)
    assert done.returncode == 0, done.stderr
    assert "CAP_BPF" in done.stdout
    assert "run as root" in done.stdout
    assert done.stderr == ""


def test_specs_can_be_read_without_capabilities() -> None:
    done = as_nobody(
        "from k8sdatapath.objects import ObjectSpec; print(ObjectSpec.from_file('pod').programs)"
    )
    assert "from_pod" in done.stdout, done.stderr


def test_a_compiler_error_is_what_the_compiler_said() -> None:
    with pytest.raises(ObjectError, match="expected"):
        compile("int broken(", name="broken")
    with pytest.raises(ObjectError, match="no-such-clang is not installed"):
        compile("int x;", clang="no-such-clang")


def test_every_feature_that_the_programs_use_is_found_by_its_probe() -> None:
    found = {support.feature.name: support.supported for support in features.probe_all()}
    assert set(found) == set(features.known())
    found.pop("geneve")  # which the kernels that this runs on need not have
    assert all(found.values()), found
    with pytest.raises(KeyError, match="did you mean 'tcx'"):
        features.probe("tcxx")


def test_a_missing_feature_is_named_with_the_release_that_brought_it() -> None:
    """A program type that no kernel has stands for any that this one lacks."""
    future = features.Feature("time_travel", "nothing yet", "99.0", features._program(999))
    features._FEATURES["time_travel"] = future
    try:
        with pytest.raises(NotSupportedError, match=r"time_travel.*since Linux 99\.0"):
            features.require("tc", "time_travel")
    finally:
        del features._FEATURES["time_travel"]


def test_numbers_that_only_the_kernel_knows() -> None:
    with pytest.raises(NotSupportedError):
        check(-524, "do something")
