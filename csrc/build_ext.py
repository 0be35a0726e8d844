"""Builds ``k8sdatapath.pybpf._libbpf``, the one C extension of this package.

Each area is a pair: ``cdef/AREA.h``, which Python and C read, and ``kd_AREA.c``, which holds the code.
Add a pair, have ``kd.h`` include the first, and it is built.
``cdef/libbpf.h`` is what Python calls of libbpf itself.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

ffibuilder = FFI()
for header in sorted(HERE.glob("cdef/*.h")):
    ffibuilder.cdef(header.read_text())
ffibuilder.set_source(
    "k8sdatapath.pybpf._libbpf",
    '#include "kd.h"',
    sources=[f"csrc/{path.name}" for path in sorted(HERE.glob("kd_*.c"))],
    include_dirs=["csrc"],
    libraries=["bpf"],
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-std=gnu11"],
    depends=[str(path.relative_to(HERE.parent)) for path in HERE.glob("**/*.h")],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
