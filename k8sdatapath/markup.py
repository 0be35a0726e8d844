"""What values look like in notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["table"]


def table(caption: object, head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Some rows under a head, with everything in them escaped."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table><caption>{escape(str(caption))}</caption><tr>{_cells('th', head)}</tr>{body}</table>"


def _cells(kind: str, values: Iterable[object]) -> str:
    return "".join(f"<{kind}>{escape(str(value))}</{kind}>" for value in values)
