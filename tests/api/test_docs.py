"""The documents tell the truth about names, links and commands. What their code prints is in tests/lab."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from k8sdatapath import errors
from k8sdatapath.cli import flows, observe, top
from k8sdatapath.cli.app import app
from k8sdatapath.datapath.flow_decoder import REASONS
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.tables.counters import outcomes
from tests.api.graph import LAYERS, ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
CODE = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:[^#\n]*\| )?(k8sdatapath [^|#\n]*)", flags=re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text()) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_paths_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:bpf|k8sdatapath|tests|docs)/[a-z_/.]+)`", text)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_design_has_every_room_at_its_layer() -> None:
    rows = re.findall(
        r"^\| L(\d) \| ([^|]+) \|", (ROOT / "docs" / "design.md").read_text(), flags=re.MULTILINE
    )
    told = {room: int(layer) for layer, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}
    assert told == {name.removeprefix("k8sdatapath."): layer for name, layer in LAYERS.items() if "." in name}


def test_every_page_is_in_the_index_once() -> None:
    index = ROOT / "docs" / "index.md"
    listed = [(index.parent / target).resolve() for target in LINK.findall(index.read_text())]
    assert len(listed) == len(set(listed))
    assert {path.resolve() for path in index.parent.rglob("*.md")} - {index.resolve()} <= set(listed)


def test_every_error_is_in_the_reference_with_its_builtin_base() -> None:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? ?\|", text, flags=re.MULTILINE))
    classes = {name: getattr(errors, name) for name in errors.__all__ if name.endswith("Error")}
    assert told.keys() == classes.keys() - {"DatapathError"}
    for name, base in told.items():
        direct = [each.__name__ for each in classes[name].__bases__ if hasattr(builtins, each.__name__)]
        assert direct == ([base] if base else [])
        assert f"{name}" in (errors.__doc__ or "")


def test_every_outcome_is_in_the_reference_as_c_and_flows_have_it() -> None:
    text = (ROOT / "docs" / "reference" / "outcomes.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (?:`(\w+)` )?\|$", text, flags=re.MULTILINE)
    known = outcomes(ObjectSpec.from_file("pod").btf)
    reasons = {name: reason.name for name, reason in REASONS.items()}
    assert sorted(told) == sorted((each.name, each.meaning, reasons.get(each.name, "")) for each in known)


#: Commands that parse their flags themselves.
PARSERS = {
    "k8sdatapath observe": observe.observe_parser,
    "k8sdatapath l7 events": observe.observe_parser,
    "k8sdatapath top": top.top_parser,
    "k8sdatapath flows agent-events": flows.events_parser,
    "k8sdatapath flows report": flows.report_parser,
    "k8sdatapath flows namespaces": flows.asking_parser,
    "k8sdatapath flows nodes": flows.asking_parser,
    "k8sdatapath flows status": flows.asking_parser,
}


def flags_of(name: str) -> set[str]:
    return set(PARSERS[name]()._option_string_actions)


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{path} {name}")
        if not hasattr(each, "commands"):
            yield f"{path} {name}", each


def test_the_reference_names_every_command_and_option() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    for name, command in commands(get_command(app), "k8sdatapath"):
        _, heading, rest = text.partition(f"## {name}\n")
        assert heading, f"{name} is not in docs/reference/cli.md"
        section = rest.partition("\n## ")[0]
        options = {option for each in command.params for option in each.opts if option.startswith("--")}
        told = set(re.findall(r"--[a-z][a-z0-9-]*", section))
        if name in PARSERS:
            options = {flag for flag in flags_of(name) if flag.startswith("--")}
            if name != "k8sdatapath observe":  # whose flags need not be told again
                options, told = (each - flags_of("k8sdatapath observe") for each in (options, told))
        assert told == options - {"--help", "--output"}, name


def test_the_readme_lists_every_command() -> None:
    (row,) = re.findall(r"^\| Command line \| (.*) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == {
        name.split()[1] for name, _ in commands(get_command(app), "k8sdatapath")
    }


def imported(tree: ast.AST) -> dict[str, Any]:
    """What a snippet takes of the library, by the names that it has there."""
    return {
        each.asname or each.name: getattr(importlib.import_module(node.module), each.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("k8sdatapath")
        for each in node.names
    }


def called(call: ast.Call, names: dict[str, Any]) -> Any:
    """``f`` of ``f()``, and ``A.f`` of ``A.f()``."""
    match call.func:
        case ast.Name(name):
            return names.get(name)
        case ast.Attribute(ast.Name(name), method):
            return getattr(names.get(name), method, None)
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_of_documents_uses_names_and_options_that_there_are(document: Path) -> None:
    names: dict[str, Any] = {}
    for code in CODE.findall(document.read_text()):
        tree = ast.parse(code)
        names |= imported(tree)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if (what := called(call, names)) is None:
                continue
            known = inspect.signature(what).parameters
            if any(each.kind is each.VAR_KEYWORD for each in known.values()):
                continue
            assert {each.arg for each in call.keywords} - {None} <= known.keys(), ast.unparse(call)


def test_commands_in_documents_are_there_with_their_options() -> None:
    known = dict(commands(get_command(app), "k8sdatapath"))
    longest_first = sorted(known, key=len, reverse=True)
    blocks = [block for document in DOCUMENTS for block in SHELL.findall(document.read_text())]
    lines = [line for block in blocks for line in COMMAND.findall(block.replace("\\\n", " "))]
    assert len(lines) > 20
    for line in lines:
        name = next(name for name in longest_first if f"{line} ".startswith(f"{name} "))
        options = {option for each in known[name].params for option in each.opts}
        options |= flags_of(name) if name in PARSERS else set()
        used = set(re.findall(r"(?<= )--?[a-z][a-z-]*", line))
        assert used <= options, line
