"""The laws of the house, over the import graph: docs/design.md says why each is there."""

from __future__ import annotations

import ast

import pytest

from tests.api.graph import LAYERS, imports, modules, room

OURS = sorted(modules())

#: Third parties (and one of the standard library) -> the only rooms that may import them.
CONFINED = {
    "k8sdatapath.pybpf._libbpf": {"k8sdatapath.pybpf.lib"},
    "pyroute2": {"k8sdatapath.net.netlink"},
    "kubernetes": {"k8sdatapath.kube"},
    "yaml": {"k8sdatapath.kube", "k8sdatapath.cli"},
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


@pytest.mark.parametrize("module", OURS)
def test_imports_go_down_the_layers(module: str) -> None:
    mine = LAYERS[room(module)]
    upward = [name for name in imports(module) if within(name, "k8sdatapath") and LAYERS[room(name)] > mine]
    assert not upward, f"{module} (L{mine}) imports {upward}"


@pytest.mark.parametrize("module", OURS)
def test_third_parties_stay_in_their_rooms(module: str) -> None:
    for name in imports(module):
        for confined, rooms in CONFINED.items():
            if within(name, confined):
                assert any(within(module, room) for room in rooms), f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in OURS if within(name, "k8sdatapath.kube")])
def test_kube_sees_only_values_and_protocols(module: str) -> None:
    allowed = {"k8sdatapath.kube", "k8sdatapath.model", "k8sdatapath.errors", "k8sdatapath.component"}
    ours = {name for name in imports(module) if within(name, "k8sdatapath")}
    assert {name for name in ours if room(name) not in allowed} == set()


@pytest.mark.parametrize("module", [name for name in OURS if LAYERS[room(name)] >= 3])
def test_byte_order_exists_only_below_the_tables(module: str) -> None:
    assert "struct" not in imports(module)
    names = {
        getattr(node, "attr", None) or getattr(node, "id", None)
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert names & BYTE_ORDER == EXEMPT.get(module, set())


@pytest.mark.parametrize("module", OURS)
def test_no_module_takes_part_in_a_cycle_of_rooms(module: str) -> None:
    """Rooms of one layer may use each other, one way only."""
    mine = room(module)
    for name in imports(module):
        if within(name, "k8sdatapath") and room(name) != mine:
            back = {other for other in OURS if room(other) == room(name) and mine in map(room, ours(other))}
            assert not back, f"{module} imports {name}, and {sorted(back)} import {mine}"


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if within(name, "k8sdatapath")}
