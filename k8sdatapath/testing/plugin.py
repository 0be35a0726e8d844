"""What pytest finds by itself once the library is installed. Nothing is imported before it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from k8sdatapath.testing.policies import PolicyWorld


@pytest.fixture
def policies_of(request: pytest.FixtureRequest) -> Callable[..., PolicyWorld]:
    """``policies_of("policies/", "pods.yaml")``: the policies and pods of manifests, to ask who reaches whom.

    Paths are relative to the directory of the test; options are those of :meth:`PolicyWorld.read`.
    """

    def read(*paths: str | os.PathLike[str], **options: Any) -> PolicyWorld:
        from k8sdatapath.testing.policies import PolicyWorld

        return PolicyWorld.read(*(request.path.parent / each for each in paths), **options)

    return read
