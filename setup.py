"""What pyproject.toml cannot say: build the C extension, compile bpf/ and ship both.

BPF objects are compiled here, once, so that running needs no compiler.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BPF = ROOT / "bpf"
PACKAGE = ROOT / "k8sdatapath"
CLANG = os.environ.get("CLANG", "clang")
CFLAGS = ["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]


class BuildPy(build_py):
    """Compile every ``bpf/*.bpf.c`` and copy the headers before the package is collected."""

    def run(self) -> None:
        copy_headers()
        for source in sorted(BPF.glob("*.bpf.c")):
            compile_object(source)
        super().run()


def compile_object(source: Path) -> None:
    target = PACKAGE / "_objects" / source.with_suffix(".o").name
    newest = max(path.stat().st_mtime for path in [source, *BPF.rglob("*.h"), Path(__file__)])
    if target.exists() and target.stat().st_mtime > newest:
        return
    target.parent.mkdir(exist_ok=True)
    arch_include = f"-I/usr/include/{platform.machine()}-linux-gnu"  # asm/types.h on Debian
    print(f"  {'CLANG-BPF':<10} {target.name}", flush=True)
    made = target.with_suffix(f".{os.getpid()}.tmp")
    command = [CLANG, *CFLAGS, f"-I{BPF / 'include'}", arch_include, "-c", str(source), "-o", str(made)]
    try:
        subprocess.run(command, check=True, cwd=ROOT)
    except FileNotFoundError:
        sys.exit(f"cannot compile {source.name}: {CLANG} is not installed (apt-get install clang libbpf-dev)")
    made.replace(target)


def copy_headers() -> None:
    target = PACKAGE / "include"
    shutil.copytree(BPF / "include", target, dirs_exist_ok=True)


setup(cffi_modules=["csrc/build_ext.py:ffibuilder"], cmdclass={"build_py": BuildPy})
