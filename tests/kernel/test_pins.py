"""Pin directories: who owns them, what may be removed, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from k8sdatapath.errors import PinsBusyError
from k8sdatapath.pins import PinDir


def test_a_pin_directory_has_one_owner(pins: PinDir) -> None:
    with pins.lock():
        with pytest.raises(PinsBusyError, match=f"process {os.getpid()} has it"):
            pins.lock()
        with pytest.raises(PinsBusyError):
            pins.lock()  # a refusal has not taken it away
    pins.lock().close()


def test_the_lock_of_a_killed_process_is_free(pins: PinDir) -> None:
    code = (
        f"from k8sdatapath.pins import PinDir; l = PinDir({str(pins)!r}).lock(); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(PinsBusyError, match=f"process {holder.pid} has it"):
            pins.lock()
        holder.kill()
        holder.wait()
        pins.lock().close()


def test_a_lock_leaves_no_directory_that_it_made(pins: PinDir) -> None:
    with pins.lock():
        assert pins.path.is_dir()
    assert not pins.path.exists()
    pins.create()
    pins.lock().close()
    assert pins.path.exists()


def test_a_directory_can_be_removed_and_locked_again_under_a_lock(pins: PinDir) -> None:
    with pins.lock():
        pins.remove()
        with pins.lock(), pytest.raises(PinsBusyError):
            pins.lock()
