"""Maps in memory keep the promises of the kernel's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from k8sdatapath.errors import ContractError, NotSupportedError
from k8sdatapath.layout import u32
from k8sdatapath.maps import Hash, LRUHash, ProgArray, in_memory
from tests.support.map_contract import *  # noqa: F403


@pytest.fixture
def make() -> Callable[..., Any]:
    return in_memory


def test_the_least_recently_used_goes_first() -> None:
    flows = in_memory(LRUHash[u32, u32], "flows", 2)
    flows[1] = flows[2] = 0
    assert flows[1] == 0
    flows[3] = 0
    assert set(flows) == {1, 3}


def test_what_needs_a_kernel_is_refused() -> None:
    with pytest.raises(NotSupportedError, match="a ProgArray in memory"):
        in_memory(ProgArray, "jumps", 2)
    with pytest.raises(ContractError, match="map 'counts' is in memory"):
        in_memory(Hash[u32, u32], "counts", 2).fileno()
