"""The BPF sources suit the newest clang at hand as well as the one that the build uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from k8sdatapath import ObjectSpec, compile
from tests.api.graph import ROOT

pytestmark = pytest.mark.kernel

SOURCES = sorted((ROOT / "bpf").glob("*.bpf.c"))


def newest_clang() -> str:
    found = [path for path in Path("/usr/bin").glob("clang-*") if re.fullmatch(r"clang-\d+", path.name)]
    return str(max(found, key=lambda path: int(path.name.removeprefix("clang-"))))


FEATURES = {"masquerade", "enforce", "host_firewall", "events", "dns"}


def load_in_all_ways(spec: ObjectSpec) -> None:
    """With nothing, with everything, and with everything while tables move: then stacks are deepest."""
    features = FEATURES & spec.config.keys()
    ways = [dict.fromkeys(features, False)]
    if features:
        ways.append(dict.fromkeys(features, True))
    if "moving" in spec.config:
        ways.append(dict.fromkeys([*features, "moving"], True))
    for settings in ways:
        with spec.with_config(**settings).load() as loaded:
            assert loaded.programs.keys() == spec.programs.keys()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_newest_clang_makes_programs_that_load(source: Path) -> None:
    load_in_all_ways(compile(source, flags=["-Wextra", "-Werror"], clang=newest_clang()))


@pytest.mark.parametrize("name", [path.name.removesuffix(".bpf.c") for path in SOURCES])
def test_so_does_the_clang_of_the_build(name: str) -> None:
    load_in_all_ways(ObjectSpec.from_file(name))
