"""The documents tell the truth about names, links and commands. What their code prints is in tests/lab."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from k8sdatapath import errors
from k8sdatapath.cli import flows, observe, top
from k8sdatapath.cli.app import app
from tests.api.graph import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
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


def test_every_error_is_in_the_reference_with_its_builtin_base() -> None:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? ?\|", text, flags=re.MULTILINE))
    classes = {name: getattr(errors, name) for name in errors.__all__ if name.endswith("Error")}
    assert told.keys() == classes.keys() - {"DatapathError"}
    for name, base in told.items():
        direct = [each.__name__ for each in classes[name].__bases__ if hasattr(builtins, each.__name__)]
        assert direct == ([base] if base else [])
        assert f"{name}" in (errors.__doc__ or "")


#: Commands that parse their flags themselves.
PARSERS = {
    "k8sdatapath observe": observe.observe_parser,
    "k8sdatapath top": top.top_parser,
    "k8sdatapath flows report": flows.report_parser,
    "k8sdatapath flows namespaces": flows.asking_parser,
    "k8sdatapath flows nodes": flows.asking_parser,
    "k8sdatapath flows status": flows.asking_parser,
}


def flags_of(name: str) -> set[str]:
    return {flag for flag in PARSERS[name]()._option_string_actions if flag.startswith("--")}


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
            options = flags_of(name)
            if name != "k8sdatapath observe":  # whose flags need not be told again
                options, told = (each - flags_of("k8sdatapath observe") for each in (options, told))
        assert told == options - {"--help", "--output"}, name
