"""Compile BPF C of one's own against the shipped headers. Needs clang and libbpf's headers (libbpf-dev)."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from k8sdatapath.errors import ObjectError
from k8sdatapath.objects import ObjectSpec

__all__ = ["compile", "include_dir"]

_FLAGS = ("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall")


def include_dir() -> Path:
    """Where ``kd/*.h`` are: the directory for ``-I`` of whoever builds on our maps and features."""
    with as_file(files("k8sdatapath") / "include") as path:
        return path


def compile(
    source: str | Path, *, name: str = "program", flags: Sequence[str] = (), clang: str = ""
) -> ObjectSpec:
    """Compile C to an object.

    :param source: a path, or the C text itself.
    :param flags: further compiler flags, e.g. ``["-Werror"]``.
    :param clang: the compiler; default ``$CLANG`` or ``clang``.
    :raises ObjectError: the compiler is missing or rejects the source; the message is what it said.
    """
    compiler = clang or os.environ.get("CLANG", "clang")
    with tempfile.TemporaryDirectory(prefix="k8sdatapath-") as scratch:
        if isinstance(source, Path):
            path, name = source, source.name.removesuffix(".c").removesuffix(".bpf")
        else:
            path = Path(scratch) / f"{name}.bpf.c"
            path.write_text(source)
        made = Path(scratch) / f"{name}.bpf.o"
        include = (f"-I{include_dir()}", f"-I/usr/include/{platform.machine()}-linux-gnu")
        command = [compiler, *_FLAGS, *include, *flags, "-c", str(path), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ObjectError(
                f"cannot compile {name}: {compiler} is not installed (Debian: clang libbpf-dev)"
            ) from None
        if done.returncode:
            raise ObjectError(f"{name} does not compile:\n{done.stderr.strip()}")
        return ObjectSpec.from_bytes(made.read_bytes(), name=name)
