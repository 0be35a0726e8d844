"""What packet tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8sdatapath.net.netns import NetNs
from tests.packets import uplink as uplinks
from tests.packets.site import lone_netns


@pytest.fixture(scope="module")
def empty_netns() -> Iterator[NetNs]:
    """A namespace where nothing is but the loopback device."""
    with lone_netns() as made:
        yield made


@pytest.fixture(scope="module")
def uplink_netns() -> Iterator[NetNs]:
    with uplinks.uplink_netns() as made:
        yield made


@pytest.fixture
def uplink(uplink_netns: NetNs) -> Iterator[uplinks.Uplink]:
    with uplinks.opened(uplink_netns) as made:
        yield made
