"""The import graph of the package, read from its source: what each module imports, at any depth of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "k8sdatapath"


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name -> parsed source, of every module of the package."""
    return {dotted(path): ast.parse(path.read_text(), str(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports at run time, deferred imports included, imports for type checkers not.

    ``from package import name`` counts as ``package.name`` where that is a module.
    """
    return frozenset(_imports(modules()[module], module))


def _imports(tree: ast.AST, module: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from _imports(branch, module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & modules().keys()
            yield from submodules
            if names - submodules or not node.module.startswith("k8sdatapath"):
                yield node.module
        else:
            yield from _imports(node, module)


#: Layer of each module or package, the longest name that fits wins (docs/design.md tells what each is for).
LAYERS = {
    "k8sdatapath": 6,  # the lazy facade: imports nothing, names everything
    "k8sdatapath.errors": 0,
    "k8sdatapath.model": 0,
    "k8sdatapath.component": 0,
    "k8sdatapath.flow_source": 0,
    "k8sdatapath.resource": 0,
    "k8sdatapath.markup": 0,
    "k8sdatapath.pictures": 1,
    "k8sdatapath.pybpf": 1,
    "k8sdatapath.layout": 2,
    "k8sdatapath.maps": 2,
    "k8sdatapath.programs": 2,
    "k8sdatapath.objects": 2,
    "k8sdatapath.links": 2,
    "k8sdatapath.pins": 2,
    "k8sdatapath.features": 2,
    "k8sdatapath.compiler": 2,
    "k8sdatapath.net": 2,
    "k8sdatapath.tables": 3,
    "k8sdatapath.datapath": 4,
    "k8sdatapath.identity": 4,
    "k8sdatapath.kube": 5,
    "k8sdatapath.reconcile": 5,
    "k8sdatapath.hubble": 5,
    "k8sdatapath.node": 6,
    "k8sdatapath.agent": 6,
    "k8sdatapath.lab": 6,
    "k8sdatapath.testing": 6,
    "k8sdatapath.cli": 6,
    "k8sdatapath.cni": 6,
}


def room(module: str) -> str:
    """The entry of :data:`LAYERS` that a module belongs to."""
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    found = next(name for name in names if name in LAYERS)
    assert found != "k8sdatapath" or module == found, f"{module} has no layer: add it to tests/api/graph.py"
    return found
