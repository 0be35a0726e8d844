"""What pyproject.toml cannot say: build the C extension, compile bpf/ and ship both.

BPF objects are compiled here, once, so that running needs no compiler.
``python setup.py build_bpf build_ext --inplace`` builds into the source tree (``make build``).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BPF = ROOT / "bpf"
PACKAGE = ROOT / "k8sdatapath"
OBJECTS = PACKAGE / "_objects"
CLANG = os.environ.get("CLANG", "clang")
ARCH = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
CFLAGS = ["-target", "bpf", f"-D__TARGET_ARCH_{ARCH}", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]


class BuildBpf(Command):
    """Put into the package what is made elsewhere: compiled programs, their headers, the demo's manifests."""

    description = "compile the BPF programs into the package, with their headers and the demo's manifests"
    user_options = []  # noqa: RUF012  distutils' own protocol

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        mirror(BPF / "include", PACKAGE / "include", "*.h")
        mirror(ROOT / "examples" / "manifests", PACKAGE / "_manifests", "*.yaml")
        sources = sorted(BPF.glob("*.bpf.c"))
        for source in sources:
            compile_object(source)
        for stale in {*OBJECTS.glob("*.o")} - {object_of(source) for source in sources}:
            stale.unlink()


class BuildPy(build_py):
    """Build what the package ships before its files are collected."""

    def run(self) -> None:
        self.run_command("build_bpf")
        super().run()


def object_of(source: Path) -> Path:
    return OBJECTS / source.with_suffix(".o").name


def compile_object(source: Path) -> None:
    target = object_of(source)
    newest = max(path.stat().st_mtime for path in [source, *BPF.rglob("*.h"), Path(__file__)])
    if target.exists() and target.stat().st_mtime > newest:
        return
    target.parent.mkdir(exist_ok=True)
    arch_include = f"-I/usr/include/{platform.machine()}-linux-gnu"  # asm/types.h on Debian
    print(f"  {'CLANG-BPF':<10} {target.name}", flush=True)
    made = target.with_suffix(f".{os.getpid()}.tmp")
    command = [CLANG, *CFLAGS, f"-I{BPF / 'include'}", arch_include, "-c", str(source), "-o", str(made)]
    try:
        status = subprocess.run(command, check=False, cwd=ROOT).returncode
    except FileNotFoundError:
        sys.exit(f"cannot compile {source.name}: {CLANG} is not installed (apt-get install clang libbpf-dev)")
    if status != 0:  # not an exception: an editable install would only warn of one
        made.unlink(missing_ok=True)
        sys.exit(f"{CLANG} could not compile {source.name}")
    made.replace(target)


def mirror(source: Path, target: Path, pattern: str) -> None:
    """Copy the files that match: write what changed, remove what is gone."""
    wanted = {path.relative_to(source) for path in source.rglob(pattern)}
    there = {path.relative_to(target) for path in target.rglob(pattern)}
    for name in there - wanted:
        (target / name).unlink()
    for name in wanted:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name not in there or (target / name).read_bytes() != (source / name).read_bytes():
            shutil.copyfile(source / name, target / name)


setup(
    cffi_modules=["csrc/build_ext.py:ffibuilder"],
    cmdclass={"build_bpf": BuildBpf, "build_py": BuildPy},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for 3.11 and later
)
