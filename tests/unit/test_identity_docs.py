"""The how-to on identities runs as it is printed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from k8sdatapath.kube.store import GROUP, KINDS
from tests.api.graph import ROOT


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/how-to/identity.md").read_text()
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for kind, text in blocks:
        if kind == "python":
            exec(text, names)
        else:
            assert capsys.readouterr().out == text


def test_the_store_and_its_definitions_agree() -> None:
    documents = list(yaml.safe_load_all((ROOT / "deploy/identity/identities.yaml").read_text()))
    *definitions, role = documents
    made = {
        (each["spec"]["names"]["plural"], each["spec"]["names"]["kind"]): each["spec"]["versions"][0]["name"]
        for each in definitions
    }
    assert made.keys() == set(KINDS.values())
    assert {f"k8sdatapath.io/{version}" for version in made.values()} == {GROUP}
    assert sorted(role["rules"][0]["resources"]) == sorted(plural for plural, _ in KINDS.values())
