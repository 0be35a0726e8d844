"""A scratch network namespace, pin directory, cgroup and compiled test object for kernel tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8sdatapath.compiler import compile
from k8sdatapath.net.cgroup import Cgroup
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.pins import PinDir

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session")
def kinds_spec() -> ObjectSpec:
    return compile(DATA / "kinds.bpf.c", flags=["-Werror"])


@pytest.fixture
def kinds(kinds_spec: ObjectSpec) -> Iterator[Object]:
    with kinds_spec.load() as loaded:
        yield loaded


@pytest.fixture
def netns() -> Iterator[NetNs]:
    """A namespace with the veth pair ``left`` and ``right``, both up."""

    def wire() -> None:
        with Netlink() as net:
            net.create_veth("left", "right")
            for device in ("lo", "left", "right"):
                net.set_up(device)

    with NetNs.create(f"kdtest-{os.getpid()}") as made:
        made.call(wire)
        yield made
        made.remove()


@pytest.fixture
def pins() -> Iterator[PinDir]:
    directory = PinDir(f"/sys/fs/bpf/kdtest-{os.getpid()}")
    yield directory
    directory.remove()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with Cgroup.create(f"kdtest-{os.getpid()}") as made:
        yield made.path
