"""What is installed is enough: no checkout, no compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.api.graph import ROOT

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

EXTRA_HINT = "the command line needs an extra: pip install 'k8sdatapath[cli]'\n"
BUILT = (".*", "build", "dist", "*.egg-info", "*.so", "_objects", "_manifests", "__pycache__")

PROGRAM = """
import k8sdatapath
from k8sdatapath import Service, programs
from k8sdatapath.objects import ObjectSpec

assert k8sdatapath.__file__.startswith({prefix!r}), k8sdatapath.__file__
with ObjectSpec.from_file("pod").load() as pod:
    print(pod.program("from_pod", programs.TC).run(bytes(64)).retval)
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel built from it, of a copy of the tree without anything built."""
    tree, made = tmp_path_factory.mktemp("tree") / "k8sdatapath", tmp_path_factory.mktemp("dist")
    built = shutil.ignore_patterns(*BUILT)
    shutil.copytree(ROOT, tree, ignore=built)
    shutil.rmtree(tree / "k8sdatapath" / "include", ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(tree))
    return made


def run(*command: str, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_all_that_running_needs(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for source in (ROOT / "bpf").glob("*.bpf.c"):
        assert f"k8sdatapath/_objects/{source.stem}.o" in names
    for header in (ROOT / "bpf" / "include").rglob("*.h"):
        assert f"k8sdatapath/include/{header.relative_to(ROOT / 'bpf' / 'include')}" in names
    for module in (ROOT / "k8sdatapath").rglob("*.py"):
        assert str(module.relative_to(ROOT)) in names
    assert {"k8sdatapath/py.typed", "k8sdatapath/pybpf/_libbpf.abi3.so"} <= names
    assert any(name.startswith("k8sdatapath/_manifests/") for name in names)


def test_the_sdist_holds_sources_and_nothing_built(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/kd.h", "csrc/build_ext.py", "bpf/pod.bpf.c", "bpf/include/kd/types.h", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_the_wheel_works_in_an_empty_venv_without_a_compiler(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", str(wheel))
    bare = {"env": {"PATH": str(tmp_path / "venv" / "bin")}, "cwd": "/"}
    assert int(run(python, "-W", "error", "-c", PROGRAM.format(prefix=str(tmp_path)), **bare)) >= 0
    command = [tmp_path / "venv" / "bin" / "k8sdatapath", "doctor"]
    hint = subprocess.run(command, capture_output=True, text=True, check=False, **bare)
    assert (hint.returncode, hint.stderr) == (2, EXTRA_HINT)
