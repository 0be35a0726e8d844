"""What values look like in notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

__all__ = ["escaped", "table"]

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escaped(text: str) -> str:
    """A text in HTML and SVG; what these have no room for, as control characters, is replaced."""
    return escape(_NOT_XML.sub("\ufffd", text))


def table(caption: object, head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Some rows under a head, with everything in them escaped."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table><caption>{escaped(str(caption))}</caption><tr>{_cells('th', head)}</tr>{body}</table>"


def _cells(kind: str, values: Iterable[object]) -> str:
    return "".join(f"<{kind}>{escaped(str(value))}</{kind}>" for value in values)
