from __future__ import annotations

import errno
import secrets
import subprocess
from collections.abc import Iterator

import pytest

from k8sdatapath.errors import KernelError
from k8sdatapath.net.cgroup import Cgroup, cgroup2_mount

pytestmark = pytest.mark.kernel


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    with Cgroup.create(f"kdlab-test-{secrets.token_hex(3)}") as made:
        yield made


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as started:
        yield started
        started.kill()


def child_of(cgroup: Cgroup) -> Cgroup:
    return Cgroup.create(f"{cgroup.path.relative_to(cgroup2_mount())}/child")


def test_the_mount_is_of_the_unified_hierarchy() -> None:
    assert (cgroup2_mount() / "cgroup.controllers").exists()


def test_it_is_a_directory_below_the_mount(cgroup: Cgroup) -> None:
    assert cgroup.path.parent == cgroup2_mount()
    assert cgroup.pids == ()


def test_processes_can_be_moved_in(cgroup: Cgroup, process: subprocess.Popen[bytes]) -> None:
    cgroup.add(process.pid)
    assert cgroup.pids == (process.pid,)
    cgroup.kill()


def test_it_cannot_be_removed_while_a_process_is_in_it(
    cgroup: Cgroup, process: subprocess.Popen[bytes]
) -> None:
    cgroup.add(process.pid)
    with pytest.raises(KernelError, match="remove cgroup") as caught:
        cgroup.remove()
    assert caught.value.errno == errno.EBUSY
    cgroup.kill()


def test_kill_reaches_children_and_waits(cgroup: Cgroup, process: subprocess.Popen[bytes]) -> None:
    child_of(cgroup).add(process.pid)
    cgroup.kill()
    cgroup.remove()
    assert not cgroup.path.exists()
    assert process.wait(1) == -9


def test_what_is_gone_can_be_killed_and_removed_again(cgroup: Cgroup) -> None:
    cgroup.remove()
    cgroup.kill()
    cgroup.remove()


def test_a_name_can_be_had_once(cgroup: Cgroup) -> None:
    with pytest.raises(KernelError, match=cgroup.path.name) as caught:
        Cgroup.create(cgroup.path.name)
    assert caught.value.errno == errno.EEXIST


def test_a_process_that_is_not_there(cgroup: Cgroup) -> None:
    with pytest.raises(KernelError, match="move process 4194303"):
        cgroup.add(4194303)
