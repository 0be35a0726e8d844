"""What tests of agents begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import WEB, NodeUnderTest, following, slices, write
from tests.support.api_double import ApiDouble
from tests.support.policed import served


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    directory = tmp_path / "manifests"
    directory.mkdir()
    write(directory, "web", [WEB, *slices("web", [(1, 3)])])
    return directory


@pytest.fixture
def node(manifests: Path) -> Iterator[NodeUnderTest]:
    """Its agent follows manifests."""
    with NodeUnderTest([f"--source={manifests}"]) as node:
        yield node


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[tuple[NodeUnderTest, ApiDouble]]:
    """Its agent follows an API server."""
    with following(tmp_path) as found:
        yield found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[NodeUnderTest, ApiDouble]]:
    """The same, and it enforces policies."""
    with served(tmp_path) as found:
        yield found
