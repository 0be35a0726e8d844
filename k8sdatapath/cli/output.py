"""One way to show results: as a table for people, as JSON or YAML for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

__all__ = ["Output", "OutputOption", "Row", "aligned", "console", "show", "show_value"]

Row = Mapping[str, object]


class Output(StrEnum):
    """A format of results."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print results.")]

STYLES = {"ok": "green", "missing": "bold red", "absent": "yellow"}


def console(*, stderr: bool = False) -> Console:
    """The terminal, or what stands in for it."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def show(rows: Sequence[Row], output: Output) -> None:
    """Print rows, which all have the same keys."""
    if output is not Output.TABLE:
        show_value([dict(row) for row in rows], output)
        return
    for line in aligned(rows) if rows else [Text("none")]:
        console().print(line)


def show_value(value: object, output: Output, *, lines: bool = False) -> None:
    """Print a value made of dicts, lists and scalars as one JSON or YAML document.

    :param lines: JSON as one line, for programs that read several as they come.
    """
    if output is Output.YAML:
        import yaml

        class Plain(yaml.SafeDumper):
            """Writes what is there twice, twice."""

            def ignore_aliases(self, data: object) -> bool:
                return True

        print("---\n" + yaml.dump(value, Dumper=Plain, sort_keys=False, allow_unicode=True), end="")
    elif lines:
        print(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    else:
        print(json.dumps(value, indent=2, ensure_ascii=False))


def aligned(rows: Sequence[Row], *, indent: int = 0) -> Iterator[Text]:
    """Aligned columns, as long as they need to be: nothing is cut off for a terminal's width."""
    heads = [name.upper().replace("_", " ") for name in rows[0]]
    cells = [heads, *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        columns = zip(line, widths, strict=True)
        text = Text("  ").join(Text(cell.ljust(width), STYLES.get(cell, "")) for cell, width in columns)
        text.rstrip()
        text.pad_left(indent)
        yield text


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
