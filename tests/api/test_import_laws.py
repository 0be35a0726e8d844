"""The laws of the house, over the import graph: docs/design.md says why each is there."""

from __future__ import annotations

import ast

from tests.api.graph import LAYERS, ROOT, imports, modules, room

#: Third parties (and one of the standard library) -> the only rooms that may import them.
CONFINED = {
    "k8sdatapath.pybpf._libbpf": {"k8sdatapath.pybpf.lib"},
    "pyroute2": {"k8sdatapath.net.netlink"},
    "kubernetes": {"k8sdatapath.kube"},
    "yaml": {"k8sdatapath.kube", "k8sdatapath.cli"},
    "prometheus_client": {"k8sdatapath.agent"},
    "grpc": {"k8sdatapath.hubble"},
    "google": {"k8sdatapath.hubble"},
    "re2": {"k8sdatapath.model.flow_patterns"},
    "typer": {"k8sdatapath.cli"},
    "rich": {"k8sdatapath.cli"},
    "ctypes": set(),
}

BYTE_ORDER = {"htons", "htonl", "ntohs", "ntohl", "byteorder", "to_bytes", "from_bytes"}

#: Where byte order is not that of a packet or struct.
EXEMPT = {
    "k8sdatapath.datapath.maglev": {"to_bytes", "from_bytes"},  # input and output of a hash
    "k8sdatapath.tables.sets": {"byteorder"},  # the two halves of one 8-byte store
}


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def ours(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    return {name for name in imports(module) if within(name, "k8sdatapath")}


def test_imports_go_down_the_layers() -> None:
    upward = [
        f"{module} (L{LAYERS[room(module)]}) imports {name} (L{LAYERS[room(name)]})"
        for module in modules()
        for name in ours(module)
        if LAYERS[room(name)] > LAYERS[room(module)]
    ]
    assert upward == []


def test_rooms_do_not_import_each_other_in_circles() -> None:
    edges = {(room(module), room(name)) for module in modules() for name in ours(module)}
    assert {(one, other) for one, other in edges if one < other and (other, one) in edges} == set()


def test_third_parties_stay_in_their_rooms() -> None:
    strays = [
        f"{module} imports {name}"
        for module in modules()
        for name in imports(module)
        for confined, rooms in CONFINED.items()
        if within(name, confined) and not any(within(module, room) for room in rooms)
    ]
    assert strays == []


def test_kube_sees_only_values_and_protocols() -> None:
    rooms = ("kube", "model", "errors", "component", "resource")
    allowed = {f"k8sdatapath.{room}" for room in rooms}
    kube = [module for module in modules() if within(module, "k8sdatapath.kube")]
    assert len(kube) > 3
    assert {name for module in kube for name in ours(module) if room(name) not in allowed} == set()


def test_byte_order_exists_only_below_the_tables() -> None:
    for module, tree in modules().items():
        if LAYERS[room(module)] >= 3:
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
            names = {node.attr if isinstance(node, ast.Attribute) else node.id for node in nodes}
            assert names & BYTE_ORDER == EXEMPT.get(module, set()), module
            assert "struct" not in imports(module), module


def test_programs_touch_the_flow_table_through_its_helpers_only() -> None:
    """While it gets another size there are two of it, see kd/maps/conntrack.h."""
    home = ROOT / "bpf" / "include" / "kd" / "maps" / "conntrack.h"
    sources = [path for path in (ROOT / "bpf").rglob("*.[ch]") if path != home]
    assert len(sources) > 10
    assert [path.name for path in sources if "&kd_conntrack" in path.read_text()] == []
