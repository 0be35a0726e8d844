"""Iterators: programs that walk kernel objects and print what they choose."""

from __future__ import annotations

import os
from typing import ClassVar

from k8sdatapath.links import KernelLink
from k8sdatapath.programs.base import Program
from k8sdatapath.programs.sk_msg import _Map


class Iter(Program):
    """A ``BPF_PROG_TYPE_TRACING`` program in a section ``iter/...``. Minimum kernel: 5.8, with BTF."""

    TYPE: ClassVar[int] = 26

    def attach(self, elements: _Map | None = None) -> KernelLink:
        """Make ready to run; ``elements`` is the map to walk, for ``iter/bpf_map_elem``."""
        from k8sdatapath.pybpf import links

        fd = links.create_iter_link(self.fd, elements.fd.number if elements is not None else None)
        return KernelLink(fd, f"{self.name} iterator")

    def read(self, elements: _Map | None = None) -> bytes:
        """Run once from start to end, and return what the program wrote.

        Socket iterators walk the calling thread's network namespace.
        """
        from k8sdatapath.pybpf import links

        with self.attach(elements) as link, links.create_iter(link.fd) as run:
            chunks = []
            while chunk := os.read(run.number, 1 << 16):
                chunks.append(chunk)
            return b"".join(chunks)
