"""docs/how-to/lab.md is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

PAGE = Path(__file__).parents[2] / "docs/how-to/lab.md"


def test_the_snippets_run_as_they_stand() -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
