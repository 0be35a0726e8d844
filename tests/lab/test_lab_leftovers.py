"""However a lab ends, nothing of it is left, and nothing of anybody else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from k8sdatapath.errors import LabError
from k8sdatapath.lab import Lab, clean, wiring
from k8sdatapath.lab.process import Agent
from k8sdatapath.net.netns import NetNs
from k8sdatapath.pybpf.fd import Fd
from tests.lab.remains import commands, nobody_else_sweeps, remains, wait_until_gone
from tests.support.nobody import as_nobody

pytestmark = pytest.mark.lab

#: What is promised is a second; the rest is for busy machines.
SOON = 3.0

OWNER = """
import sys, time
from k8sdatapath.lab import Lab
with Lab.start(nodes=2) as lab:
    pod = lab.pod("pod")
    pod.serve_http(80)
    lab.external("outside").get(f"http://{pod.address}")
    sock = pod.tcp(pod.address, 80)
    pod.popen(["sleep", "1000"])
    print(lab.name, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def the_only_sweeper() -> Iterator[None]:
    with nobody_else_sweeps():
        yield


def python(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


@contextmanager
def lab_of_another_process() -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """The process, the name of its lab, and the pid of the lab's keeper."""
    with python(OWNER) as owner:
        try:
            assert owner.stdout is not None
            name = owner.stdout.readline().strip()
            (keeper,) = (pid for pid, command in commands() if f"keeper.py {name} " in command)
            yield owner, name, keeper
        finally:
            owner.kill()
    wait_until_gone(name, SOON)


def press_ctrl_c(owner: subprocess.Popen[str]) -> str:
    """What it says as it ends. Python loses the signal if it is just in a weakref callback: press again."""
    while True:
        os.killpg(owner.pid, signal.SIGINT)
        try:
            return owner.communicate(timeout=5)[1]
        except subprocess.TimeoutExpired:
            continue


def test_nothing_is_left_after_the_with() -> None:
    with Lab.start(nodes=2) as lab:
        sleeper = lab.pod("pod").popen(["sleep", "1000"], start_new_session=True)
        lab.external("outside")
        assert len(remains(lab.name)) > 10
    assert remains(lab.name) == []
    assert sleeper.wait(1) != 0


def test_nothing_is_left_after_an_exception() -> None:
    with pytest.raises(LabError), Lab.start(datapath=False) as lab:
        lab.pod("node1")
    assert remains(lab.name) == []


def test_nothing_is_left_when_the_owner_is_killed() -> None:
    with lab_of_another_process() as (owner, name, _keeper):
        assert len(remains(name)) > 10
        owner.kill()
        wait_until_gone(name, SOON)


def test_nothing_is_left_after_ctrl_c() -> None:
    """The terminal sends the signal to the whole foreground process group."""
    with lab_of_another_process() as (owner, name, _keeper):
        assert "KeyboardInterrupt" in press_ctrl_c(owner)
        assert owner.returncode == -signal.SIGINT
        assert remains(name) == []


def test_nothing_is_left_after_ctrl_c_at_any_time_of_starting() -> None:
    script = (
        "from k8sdatapath.lab import Lab\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    with Lab.start(name='{name}', datapath=False) as lab: lab.pod('pod'); lab.external('outside')"
    )
    for number in range(8):
        name = f"interrupted{os.getpid()}x{number}"
        with python(script.format(name=name)) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "go\n"
            time.sleep(0.03 + 0.04 * number)
            press_ctrl_c(owner)
        wait_until_gone(name, SOON)


def test_nothing_is_left_when_closing_is_interrupted() -> None:
    script = (
        "from k8sdatapath.lab import Lab, leftovers\n"
        "def interrupted(lab): raise KeyboardInterrupt\n"
        "leftovers.release = interrupted\n"
        "with Lab.start(name='{name}', datapath=False) as lab: lab.pod('pod')"
    )
    name = f"unclosed{os.getpid()}"
    with python(script.format(name=name)) as owner:
        assert "KeyboardInterrupt" in owner.communicate()[1]
    wait_until_gone(name, SOON)


def test_clean_removes_what_a_killed_keeper_could_not() -> None:
    with lab_of_another_process() as (owner, name, keeper):
        os.kill(keeper, signal.SIGKILL)
        owner.kill()
        owner.wait()
        time.sleep(0.2)
        assert Path(f"/run/netns/kdlab.{name}.pod").exists()
        removed = clean()
    assert f"network namespace kdlab.{name}.pod" in removed
    assert remains(name) == []


def test_clean_leaves_living_labs_and_strangers_alone() -> None:
    stranger = "kdlab-stranger"
    with (
        lab_of_another_process() as (_owner, theirs, _keeper),
        Lab.start(datapath=False) as ours,
        NetNs.create(stranger),
    ):
        before = remains(ours.name), remains(theirs)
        removed = " ".join(clean())
        assert ours.name not in removed
        assert theirs not in removed
        assert (remains(ours.name), remains(theirs)) == before
        assert Path("/run/netns", stranger).exists()
        assert ours.pod("pod").exec(["true"]).returncode == 0


def test_a_name_is_taken_while_its_lab_lives() -> None:
    with lab_of_another_process() as (owner, name, _keeper):
        with pytest.raises(LabError, match=f"{name}.*process {owner.pid}"):
            Lab.start(name=name, datapath=False)
        assert len(remains(name)) > 10
        owner.kill()
        owner.wait()
        with Lab.start(name=name, datapath=False) as lab:  # at once, whether the keeper has swept or not
            time.sleep(0.5)
            assert lab.pod("pod").exec(["true"]).returncode == 0
    wait_until_gone(name, SOON)


@pytest.mark.parametrize("step", ["prepare", "make_switch", "plug_in", "join_wire", "add_routes", "wait_for"])
def test_a_start_that_fails_half_way_leaves_nothing(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError(step)

    name = f"half{os.getpid()}"
    before = {fd.number for fd in Fd.live()}
    monkeypatch.setattr(wiring, step, fail)
    with pytest.raises(RuntimeError, match=step):
        Lab.start(name=name, datapath=False)
    assert remains(name) == []
    assert {fd.number for fd in Fd.live()} == before


def test_a_start_whose_datapath_fails_leaves_nothing() -> None:
    name = f"half{os.getpid()}"
    with pytest.raises(TypeError, match="no_such_option"):
        Lab.start(name=name, no_such_option=1)
    assert remains(name) == []


def test_without_root_the_error_says_so() -> None:
    name = f"nobody{os.getpid()}"
    run = as_nobody(
        "from k8sdatapath.errors import PermissionDeniedError\n"
        "from k8sdatapath.lab import Lab\n"
        f"try: Lab.start(name='{name}')\n"
        "except PermissionDeniedError as error: print(error)"
    )
    assert "labs need root" in run.stdout, run.stderr
    assert remains(name) == []


def test_a_pod_that_fails_half_way_goes_with_its_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab.start(datapath=False) as lab:
        with monkeypatch.context() as patch:
            patch.setattr(wiring, "set_up_pod", lambda place, overhead: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                lab.pod("one")
        assert lab.node.pods == []
        assert lab.pod("two").exec(["true"]).returncode == 0
    assert remains(lab.name) == []


def test_an_agent_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Lab.start(datapath=False) as lab:
        pod = lab.pod("pod")
        pod.socket().close()
        for pid in pod.cgroup.pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(LabError, match="agent of pod has died"):
            pod.socket()
        (tmp_path / "cgroup").mkdir()
        pod.cgroup.path = tmp_path / "cgroup" / "gone"
        agent = Agent("lost", pod.netns, pod.cgroup, lab._owner)
        with pytest.raises(LabError, match=r"(?s)agent of lost has died: .*No such file or directory"):
            agent.request("socket", family=2, type=1, proto=0)
        agent.close()


def test_a_forked_child_does_not_end_the_lab() -> None:
    with Lab.start(datapath=False) as lab:
        script = "import os\nif not (pid := os.fork()):\n    lab.close(); os._exit(0)\nos.waitpid(pid, 0)"
        exec(script, {"lab": lab})
        assert lab.pod("pod").exec(["true"]).returncode == 0
    assert remains(lab.name) == []


def test_a_lab_that_is_dropped_warns_and_ends() -> None:
    lab = Lab.start(datapath=False)
    name = lab.name
    with pytest.warns(ResourceWarning, match=f"lab '{name}' was never closed"):
        del lab
    assert remains(name) == []


@pytest.mark.alone
def test_one_node_and_three_pods_are_up_within_a_second() -> None:
    """In a new process, imports and datapath included, until all pods serve; a busy machine may try again."""
    script = (
        "import time; start = time.monotonic()\n"
        "from k8sdatapath.lab import Lab\n"
        "with Lab.start() as lab:\n"
        "    for name in ('one', 'two', 'three'): lab.pod(name).serve_http(80)\n"
        "    print(time.monotonic() - start)"
    )
    times: list[float] = []
    while not times or (min(times) > 1 and len(times) < 10):
        with python(script) as process:
            times.append(float(process.communicate()[0]))
    assert min(times) < 1, times
