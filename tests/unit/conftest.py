"""Fixtures of the unit tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from k8sdatapath.kube.resources import Resource
from k8sdatapath.kube.watch import KubeWatch
from tests.support.api_double import ApiDouble
from tests.support.watching import HASTY, Watch, client


@pytest.fixture
def double() -> Iterator[ApiDouble]:
    with ApiDouble() as double:
        yield double


@pytest.fixture
def watch(double: ApiDouble) -> Iterator[Watch]:
    """Makes watches of the double; no thread of them may be left."""
    made: list[KubeWatch] = []

    def make(*resources: str | Resource, **options: Any) -> KubeWatch:
        options = {"patience": HASTY} | options
        made.append(KubeWatch(client(double), resources or ("services",), **options))
        return made[-1]

    yield make
    for each in made:
        start = time.monotonic()
        each.close()
        assert time.monotonic() - start < 1
    assert [each.name for each in threading.enumerate() if each.name.startswith("kd-watch")] == []
