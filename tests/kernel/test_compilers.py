"""The BPF sources suit the newest clang at hand as well as the one that the build uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from k8sdatapath import compile
from tests.api.graph import ROOT

pytestmark = pytest.mark.kernel

SOURCES = sorted((ROOT / "bpf").glob("*.bpf.c"))


def newest_clang() -> str:
    found = [path for path in Path("/usr/bin").glob("clang-*") if re.fullmatch(r"clang-\d+", path.name)]
    return str(max(found, key=lambda path: int(path.name.removeprefix("clang-"))))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_newest_clang_makes_programs_that_load(source: Path) -> None:
    spec = compile(source, flags=["-Wextra", "-Werror"], clang=newest_clang())
    features = {"masquerade", "enforce", "host_firewall", "events", "dns"} & spec.config.keys()
    for on in (False, True) if features else (False,):
        with spec.with_config(**dict.fromkeys(features, on)).load() as loaded:
            assert loaded.programs.keys() == spec.programs.keys()
