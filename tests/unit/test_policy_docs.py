"""The how-to on policies runs as it is printed."""

from __future__ import annotations

import re

import pytest

from k8sdatapath.kube.policy import cilium
from k8sdatapath.model.http import HTTPReason
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run

REFERENCE = (ROOT / "docs/reference/policies.md").read_text()


def test_how_to_policy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    told = blocks(ROOT / "docs/how-to/policy.md")
    assert len(told) == 6
    names: dict[str, object] = {}
    for code, output in told:
        assert run(code, names) == output, code


def test_the_reference_names_what_is_refused():
    fields = {f"{side}{name}" for name in cilium._UNABLE for side in ("from", "to")}
    fields |= {*cilium._UNABLE_RULE, *cilium._NO_NODES}
    assert fields - set(re.findall(r"`(\w+)`", REFERENCE)) == set()


def test_the_reference_names_every_entity():
    assert set(cilium._ENTITIES) - set(re.findall(r"`([\w-]+)`", REFERENCE)) == set()


def test_the_reference_has_every_reason_to_deny_a_request():
    for each in HTTPReason:
        assert f"| {each.name} | {each.words} |" in REFERENCE
