from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from k8sdatapath import maps

pytestmark = pytest.mark.kernel
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "maps.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


def test_the_page_on_maps_runs_as_it_is_printed() -> None:
    names: dict[str, object] = {}
    for code, output in BLOCK.findall(PAGE.read_text()):
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            exec(compile(code, str(PAGE), "exec"), names)
        assert told.getvalue() == output, code


def test_the_page_names_every_kind() -> None:
    kinds = {name for name in maps.__all__ if isinstance(getattr(maps, name), type) and name != "Map"}
    assert set(re.findall(r"`(\w+)(?:\[[\w, ]+\])?`(?=[^|\n]*\|[^|\n]*\| \d)", PAGE.read_text())) >= kinds
