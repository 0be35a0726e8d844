"""The public API as text: names and signatures, one line each.

``make generate`` writes it to ``public.txt``, a test compares. A change of it is a change of the API:
it belongs into CHANGELOG.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.api.graph import modules

SNAPSHOT = Path(__file__).with_name("public.txt")

#: What is not imported by users: the raw binding and the command line.
PRIVATE = ("k8sdatapath.pybpf", "k8sdatapath.cli")


def lines() -> Iterator[str]:
    """Every public class, function, method and field of every public module, from its source."""
    for name, tree in modules().items():
        if not name.startswith(PRIVATE):
            yield from members(name, tree.body)


def members(owner: str, body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and public(node.name):
            yield f"{owner}.{node.name}{marks(node)}({ast.unparse(node.args)}){result(node)}"
        elif isinstance(node, ast.ClassDef) and public(node.name):
            bases = ", ".join(map(ast.unparse, node.bases))
            yield f"{owner}.{node.name}({bases})"
            yield from members(f"{owner}.{node.name}", node.body)
        elif isinstance(node, ast.AnnAssign) and public(ast.unparse(node.target)):
            default = f" = {ast.unparse(node.value)}" if node.value else ""
            yield f"{owner}.{ast.unparse(node.target)}: {ast.unparse(node.annotation)}{default}"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and (public(target.id) or target.id == "__all__"):
                    yield f"{owner}.{target.id} = {ast.unparse(node.value)}"


def public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name not in {"__slots__", "__all__"})


def marks(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    names = [ast.unparse(mark) for mark in node.decorator_list]
    return "".join(f" @{name}" for name in names if name in {"property", "classmethod", "staticmethod"})


def result(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return f" -> {ast.unparse(node.returns)}" if node.returns else ""


if __name__ == "__main__":
    print(*lines(), sep="\n")
