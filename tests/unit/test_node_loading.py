"""What a node says when the kernel refuses what it loads."""

from __future__ import annotations

import errno
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest

from k8sdatapath.errors import KernelError
from k8sdatapath.node import NodeConfig, loading
from k8sdatapath.objects import ObjectSpec


class Loaded(nullcontext[Any]):
    """An object of which the kernel has nothing."""

    def __init__(self, spec: ObjectSpec, refused: str) -> None:
        super().__init__(self)
        self.spec = spec
        self.map_fds: dict[str, object] = {}
        self._refused = refused

    def load_programs(self, *names: str) -> None:
        if self.spec.name == self._refused:
            raise KernelError("load program", names[0], errno.EINVAL)


@pytest.mark.parametrize("what", ["maps", "programs"])
@pytest.mark.parametrize(("name", "probed"), [("accelerator", ["sock_redirect"]), ("host", [])])
def test_what_sockets_need_to_skip_the_stack_is_asked_for_where_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, probed: list[str], what: str
) -> None:
    def load(spec: ObjectSpec, **_: object) -> Loaded:
        if what == "maps" and spec.name == name:
            raise KernelError("create map", "kd_sockets", errno.EINVAL)
        return Loaded(spec, name)

    asked: list[str] = []
    monkeypatch.setattr(ObjectSpec, "load", load)
    monkeypatch.setattr(loading.features, "require", asked.append)
    with ExitStack() as own, pytest.raises(KernelError):
        loading.load(NodeConfig(accelerate=True, cgroup="/sys/fs/cgroup"), own)
    assert asked == probed
