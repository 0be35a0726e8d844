"""The kernel's maps, one by one and in bulk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.map_contract import *  # noqa: F403


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    with ExitStack() as made:
        yield lambda kind, *args, **options: made.enter_context(kind.create(*args, **options))
