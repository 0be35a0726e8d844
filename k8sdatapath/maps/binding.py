"""From a descriptor to a map of a kind."""

from __future__ import annotations

from typing import TypeVar

from k8sdatapath.maps.base import Map
from k8sdatapath.pybpf.fd import Fd
from k8sdatapath.pybpf.maps import KernelMap, info

__all__ = ["bind"]

M = TypeVar("M", bound=Map)


def bind(kind: type[M], fd: Fd, *, owned: bool = False) -> M:
    """A descriptor as a map of ``kind``, e.g. ``Hash[FrontendKey, Frontend]``, or bare ``Hash`` for bytes.

    The kind, the sizes and, where the kernel has type information for the map, every field are compared here,
    once.

    :param owned: whether closing the map closes the descriptor; if so, it is also closed when this fails.
    :raises LayoutError: the map is not what ``kind`` says.
    """
    try:
        about = info(fd)
        kind.check(about)
        return kind(KernelMap(fd, about), owned=fd if owned else None)
    except BaseException:
        if owned:
            fd.close()
        raise
