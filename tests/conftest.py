"""Rules of the suite: tiers, earned skips, and nothing left behind.

A test's tier is the directory it stands in. ``unit`` and ``api`` need nothing; the others need root.
A test is skipped only because the library itself said that the kernel lacks a feature, and even then
not when this kernel is newer than the one the feature came with. ``KD_REQUIRE_KERNEL=1`` allows no
skip at all.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from k8sdatapath.errors import NotSupportedError
from k8sdatapath.pybpf.fd import Fd
from tests.support.leaks import SharedMachine, host_state

pytest.register_assert_rewrite("tests.support.map_contract")

TESTS = Path(__file__).parent
ROOTLESS = {"unit", "api"}
REQUIRE_KERNEL = os.environ.get("KD_REQUIRE_KERNEL") == "1"
RAN = pytest.StashKey[dict[str, Counter[str]]]()


def tier(path: Path) -> str:
    return path.relative_to(TESTS).parts[0]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RAN] = defaultdict(Counter)
    Fd.trace = True
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are started deaf to it
    os.environ.pop("PYTHONUNBUFFERED", None)  # programs under test buffer as they do at a user's
    hypothesis.settings.register_profile("k8sdatapath", deadline=None)  # a busy machine is slow
    hypothesis.settings.load_profile("k8sdatapath")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        where = tier(item.path)
        if where not in ROOTLESS:
            item.add_marker(where)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, NotSupportedError):
        if not kernel_has(error.min_kernel):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1], f"Skipped: {error}")
        else:
            report.sections.append(("Skip refused", f"this kernel is newer than {error.min_kernel}"))
    if report.skipped and REQUIRE_KERNEL and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which KD_REQUIRE_KERNEL=1 forbids: {report.longrepr}"
    if report.when == "call" or not report.passed:
        item.config.stash[RAN][tier(item.path)][report.outcome] += 1
    return report


def kernel_has(version: str) -> bool:
    """Whether the running kernel is at least of this version; an unknown version proves nothing."""
    return bool(version) and numbers(platform.release()) >= numbers(version)


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran = terminalreporter.config.stash[RAN]
    terminalreporter.section("tests per tier")
    for where in sorted(ran):
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(ran[where].items()))
        terminalreporter.line(f"{where:12} {counts}")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the session when descriptors, namespaces, cgroups, devices, pins or processes survive it."""
    machine = SharedMachine()
    before = host_state()
    yield
    gc.collect()
    left = sorted(host_state() - before)
    deadline = time.monotonic() + 3  # the kernel takes devices and cgroups apart in its own time
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = sorted(host_state() - before)
    alone = machine.alone()
    machine.close()
    if left and not alone:
        print("\nleft on the host, by this or by another test session:", *left, sep="\n  ")
        left = []
    if not request.session.testsfailed:  # the traceback of a failure keeps its frames' descriptors alive
        left += [f"{fd!r} made at\n{fd.born}" for fd in Fd.live()]
    if left:
        pytest.fail("left behind by the session:\n  " + "\n  ".join(left), pytrace=False)
