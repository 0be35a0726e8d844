"""What tells that devices of a namespace have changed."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack

import pytest

from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.rtnetlink import LinkChanges

pytestmark = pytest.mark.kernel


def test_changes_are_told_to_a_process_with_very_many_descriptors() -> None:
    with ExitStack() as own:
        netns = own.enter_context(NetNs.create(f"kdtest-changes-{os.getpid()}"))
        for _ in range(1100):
            own.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        changes = own.enter_context(netns.call(LinkChanges))
        assert not changes.wait(0)
        changes.wake()
        assert not changes.wait(10)
        subprocess.run(["ip", "-n", netns.name, "link", "set", "lo", "up"], check=True)
        assert changes.wait(10)
