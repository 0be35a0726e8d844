"""Every semantic of services names the tests that show it, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.api.graph import ROOT

TEXT = (ROOT / "docs" / "reference" / "semantics.md").read_text()
LINES = re.findall(r"^\| (.+) \|$", TEXT, flags=re.MULTILINE)
ROWS = [line.split(" | ") for line in LINES if not line.endswith("Shown by")]
NAMED = sorted(set(re.findall(r"`((?:unit|packets|lab|conformance)/test_\w+\.py[\w:]*)`", TEXT)))
CONVERSATIONS = sorted(set(re.findall(r'"([^"\n]+)"', TEXT)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_semantic_is_shown_by_a_test(row: list[str]) -> None:
    _what, _how, shown = row
    assert re.search(r'`\w+/test_\w+\.py[\w:]*`|"[^"]+"', shown)


@pytest.mark.parametrize("name", NAMED)
def test_the_test_exists(name: str) -> None:
    file, *path = name.split("::")
    inside: list[ast.stmt] = ast.parse((ROOT / "tests" / file).read_text()).body
    for part in path:
        (found,) = (
            node
            for node in inside
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == part
        )
        inside = found.body


def test_the_conversations_exist() -> None:
    told = _spoken(ROOT / "tests" / "packets" / "test_flows.py")
    assert len(CONVERSATIONS) > 5
    assert [sentence for sentence in CONVERSATIONS if sentence not in told] == []


def _spoken(file: Path) -> set[str]:
    return {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
