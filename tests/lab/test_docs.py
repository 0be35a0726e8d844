"""The code of README and tutorial runs, and prints what stands below it, up to numbers."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from tests.api.graph import ROOT

pytestmark = pytest.mark.lab

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


def blocks(document: Path) -> list[tuple[str, str]]:
    """Code and, if it stands right below, output."""
    return BLOCK.findall(document.read_text())


def run(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "document", "exec"), names)
    return out.getvalue()


def without_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "N", text)


def test_tutorial() -> None:
    names: dict[str, object] = {}
    told = blocks(ROOT / "docs" / "tutorial" / "first-service.md")
    assert len(told) > 5
    for code, output in told:
        assert without_numbers(run(code, names)) == without_numbers(output), code


def test_readme_balances_a_hundred_requests() -> None:
    ((code, _),) = blocks(ROOT / "README.md")
    answers, flows = run(code, {}).splitlines()
    seen = dict(re.findall(r"'(one|two)': (\d+)", answers))
    assert int(seen["one"]) + int(seen["two"]) == 100
    assert flows == f"{{'10.244.1.3:8080': {seen['one']}, '10.244.1.4:8080': {seen['two']}}}"
