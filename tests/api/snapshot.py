"""The public API as text: names and signatures, one line each.

``make generate`` writes it to ``public.txt``, a test compares. A change of it is a change of the API:
it belongs into CHANGELOG.md.
"""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from collections.abc import Iterator
from inspect import isclass, isfunction, ismodule, unwrap
from pathlib import Path

from tests.api.graph import modules

SNAPSHOT = Path(__file__).with_name("public.txt")

#: What users do not import: the raw binding and the command line.
PRIVATE = ("k8sdatapath.pybpf", "k8sdatapath.cli")


def lines() -> Iterator[str]:
    """Every public class, function, method, field and constant, where it is defined."""
    public = public_names()
    for module, tree in modules().items():
        for node in tree.body:
            if names_of(node) & public[module]:
                yield from told(module, node)


def public_names() -> dict[str, set[str]]:
    """Module -> the names defined there that an ``__all__`` offers, its own or one that passes them on."""
    found: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        if not module.startswith(PRIVATE):
            imported = importlib.import_module(module)
            for name in getattr(imported, "__all__", []):
                value = getattr(imported, name)
                value = unwrap(value) if callable(value) else value  # one with a cache is a function still
                if not ismodule(value):
                    found[value.__module__ if isclass(value) or isfunction(value) else module].add(name)
    return found


def names_of(node: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def told(owner: str, node: ast.stmt) -> Iterator[str]:
    """A definition in one line, then those of its public members."""
    if isinstance(node, ast.FunctionDef):
        marks = [ast.unparse(mark) for mark in node.decorator_list]
        shown = "".join(f"@{mark} " for mark in marks if mark in {"property", "classmethod", "staticmethod"})
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield f"{shown}{owner}.{node.name}({ast.unparse(node.args)}){result}"
    elif isinstance(node, ast.ClassDef):
        yield f"class {owner}.{node.name}({', '.join(map(ast.unparse, node.bases))})"
        for member in node.body:
            if any(not name.startswith("_") or name == "__init__" for name in names_of(member)):
                yield from told(f"{owner}.{node.name}", member)
    elif isinstance(node, ast.AnnAssign):
        default = f" = {ast.unparse(node.value)}" if node.value else ""
        yield f"{owner}.{ast.unparse(node.target)}: {ast.unparse(node.annotation)}{default}"
    elif isinstance(node, ast.Assign):
        yield f"{owner}.{ast.unparse(node.targets[0])} = {ast.unparse(node.value)}"


if __name__ == "__main__":
    print(*lines(), sep="\n")
