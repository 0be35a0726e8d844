"""Network namespaces, without ever moving the caller's thread."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

from k8sdatapath.errors import KernelError
from k8sdatapath.pybpf import netns
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.pybpf.fd import Fd

P = ParamSpec("P")
T = TypeVar("T")

#: Where names are mounts; shared with ``ip netns``.
NAMES: Final = Path("/run/netns")


class NetNs:
    """A network namespace, held open.

    ::

        with NetNs.create("blue") as blue:             # also `ip netns exec blue ...`
            blue.call(socket.if_nameindex)             # [(1, 'lo')]

    A namespace lives while something holds it: its name, a process, a socket, or a descriptor such as
    this object's. :meth:`close` gives up the descriptor; :meth:`remove` the name as well. Leaving the
    ``with`` of a created namespace removes it, of an opened one closes it.
    """

    def __init__(self, fd: Fd, path: Path, *, created: bool = False) -> None:
        self._fd = fd
        self._created = created
        #: Where it was opened; below :data:`NAMES` if it has a name.
        self.path = path

    @classmethod
    def create(cls, name: str) -> Self:
        """Make a namespace called ``name``. It has nothing but a loopback device, which is down."""
        path = _named(name)
        netns.create(path)
        return cls._open(path, created=True)

    @classmethod
    def open(cls, name: str | os.PathLike[str]) -> Self:
        """Open the namespace of a name, or of a path such as ``/proc/1234/ns/net``."""
        return cls._open(Path(name) if isinstance(name, os.PathLike) or "/" in name else _named(name))

    @classmethod
    def current(cls) -> Self:
        """The namespace of the calling thread."""
        return cls._open(Path("/proc/thread-self/ns/net"))

    @classmethod
    def from_pid(cls, pid: int) -> Self:
        """The namespace that process ``pid`` is in."""
        return cls._open(Path(f"/proc/{pid}/ns/net"))

    @classmethod
    def _open(cls, path: Path, *, created: bool = False) -> Self:
        what = f"network namespace {path.name if path.parent == NAMES else path}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise kernel_error(error.errno or 0, "open network namespace", str(path)) from None
        return cls(Fd(fd, what), path, created=created)

    @property
    def name(self) -> str:
        """The name under ``/run/netns``, empty if it was opened by another path."""
        return self.path.name if self.path.parent == NAMES else ""

    @property
    def cookie(self) -> int:
        """The number that BPF programs see as ``bpf_get_netns_cookie()``."""
        return netns.cookie(self._fd)

    def dup(self) -> NetNs:
        """The same, open for itself."""
        return NetNs(self._fd.dup(), self.path)

    def fileno(self) -> int:
        """The descriptor, for ``setns`` and netlink."""
        return self._fd.number

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` inside the namespace and return what it returns, or raise what it raises.

        It runs in a thread made for this call, which ends with it. The caller's thread never moves, so
        this is safe in a notebook, an event loop or a thread pool. Sockets that ``function`` makes, and
        processes it starts, belong to the namespace and may be handed out.
        """
        future: Future[T] = Future()
        fd = self._fd
        fd.fileno()  # a closed namespace is the caller's mistake: say so here
        context = contextvars.copy_context()

        def inside() -> None:
            try:
                netns.enter(fd)
                future.set_result(context.run(function, *args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=inside, name=f"in {fd.what}", daemon=True)
        thread.start()
        thread.join()
        return future.result()

    def close(self) -> None:
        """Let go of the namespace; does nothing the second time."""
        self._fd.close()

    def remove(self) -> None:
        """Take away its name and close it: it ends with the last process or socket inside."""
        if self.name and self.path.exists():
            netns.remove(self.path)
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._created:
            self.remove()
        else:
            self.close()

    def __repr__(self) -> str:
        return f"<NetNs {self.name or self.path}{' closed' if self._fd.closed else ''}>"


def inhabited() -> Generator[NetNs, None, None]:
    """Each network namespace that a process is in or that has a name, open until the next is asked for."""
    kind, met = os.stat("/proc/self/ns/net").st_dev, set()
    paths = [Path(f"/proc/{pid}/ns/net") for pid in filter(str.isdecimal, os.listdir("/proc"))]
    for path in (*paths, *(NAMES.iterdir() if NAMES.is_dir() else ())):
        with ExitStack() as opened, suppress(KernelError):  # it may end at any moment
            netns = opened.enter_context(NetNs.open(path))
            found = os.stat(netns.fileno())
            if found.st_dev == kind and found.st_ino not in met:  # a name may be left of what is gone
                met.add(found.st_ino)
                yield netns


def _named(name: str) -> Path:
    if not name or "/" in name or name in (".", ".."):
        raise ValueError(f"not a name for a network namespace: {name!r}")
    return NAMES / name
