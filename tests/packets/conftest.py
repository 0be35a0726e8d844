"""What packet tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8sdatapath.net.netns import NetNs
from tests.packets.site import lone_netns


@pytest.fixture(scope="module")
def empty_netns() -> Iterator[NetNs]:
    """A namespace where nothing is but the loopback device."""
    with lone_netns() as made:
        yield made
