"""The C extension, or a sentence about why it cannot be loaded."""

from __future__ import annotations

try:
    from k8sdatapath.pybpf._libbpf import ffi, lib
except ImportError as error:  # not built, or no libbpf on this machine
    raise ImportError(
        f"the libbpf extension of k8sdatapath cannot be loaded: {error}. "
        "It needs the system library libbpf.so.1 (Debian: apt-get install libbpf1); "
        "in a source checkout build it with `make build`."
    ) from error

__all__ = ["ffi", "lib"]
