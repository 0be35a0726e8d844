"""Rules of the suite: tiers, earned skips, and nothing left behind.

A test's tier is the directory it stands in. ``unit`` and ``api`` need nothing; the others need root.
A test is skipped only because the library itself said that the kernel lacks a feature, and even then
not when this kernel is newer than the one the feature came with. ``KD_REQUIRE_KERNEL=1`` allows no
skip at all.
``KD_FAILED=file`` adds the names of those that failed to a file, as ``pytest @file`` takes them.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck

from k8sdatapath.errors import NotSupportedError
from k8sdatapath.pybpf.fd import Fd
from tests.support.leaks import SharedMachine, children, host_state

pytest.register_assert_rewrite("tests.support.map_contract")

TESTS = Path(__file__).parent
ROOT = TESTS.parent
ROOTLESS = {"unit", "api"}
REQUIRE_KERNEL = os.environ.get("KD_REQUIRE_KERNEL") == "1"
FAILED = os.environ.get("KD_FAILED")
FOR_GOOD = f"{__name__}::nothing_left_behind"
"""What failed is no test, so no test makes good for it: pytest finds none of this name."""


def tier(path: Path) -> str:
    return path.relative_to(TESTS).parts[0]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of several processes, the one that starts the others
        config.pluginmanager.register(Host())
    Fd.trace = True
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are started deaf to it
    os.environ.pop("PYTHONUNBUFFERED", None)  # programs under test buffer as they do at a user's
    properties(config)


def properties(config: pytest.Config) -> None:
    """How properties are tried: always on the same examples, or on others by ``--hypothesis-seed``."""
    hypothesis.settings.register_profile(
        "k8sdatapath",
        deadline=None,  # a busy machine is slow
        derandomize=config.getoption("--hypothesis-seed") is None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
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
    return report


def kernel_has(version: str) -> bool:
    """Whether the running kernel is at least of this version; an unknown version proves nothing."""
    return bool(version) and numbers(platform.release()) >= numbers(version)


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


class Host:
    """Counts what has run, and fails the run when something of it survives on the host."""

    def __init__(self) -> None:
        self.ran: dict[str, Counter[str]] = defaultdict(Counter)
        self.machine = SharedMachine()
        self.before = host_state()
        self.left: list[str] = []
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(FOR_GOOD if report.when == "teardown" else report.nodeid)
        if report.when == "call" or not report.passed:
            self.ran[tier(ROOT / report.fspath)][report.outcome] += 1

    @pytest.hookimpl(wrapper=True, trylast=True)  # after other processes have ended, before the summary
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        result = yield
        if self.machine.alone():  # what appeared meanwhile is this run's own doing
            self.left = settled(lambda: host_state() - self.before)
        if self.left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self.failed.add(FOR_GOOD)
        if FAILED and self.failed:
            with open(FAILED, "a") as file:
                file.writelines(f"{each}\n" for each in sorted(self.failed))
        self.machine.close()
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("tests per tier")
        for where in sorted(self.ran):
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.ran[where].items()))
            terminalreporter.line(f"{where:12} {counts}")
        if self.left:
            terminalreporter.section("left behind on the host", red=True)
            for each in self.left:
                terminalreporter.line(each)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the session when descriptors or processes survive it."""
    before = set(children())
    yield
    gc.collect()
    left = [f"child process {each}" for each in settled(lambda: set(children()) - before)]
    if not request.session.testsfailed:  # the traceback of a failure keeps its frames' descriptors alive
        left += [f"{fd!r} made at\n{fd.born}" for fd in Fd.live()]
    if left:
        pytest.fail("left behind by the session:\n  " + "\n  ".join(left), pytrace=False)


def settled(look: Callable[[], set[str]]) -> list[str]:
    """What is still there after a while: the kernel takes devices and cgroups apart in its own time."""
    deadline = time.monotonic() + 30
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return sorted(found)
