"""Starting the helpers of a lab: plain Python files that need no package, so that they start fast."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from array import array
from pathlib import Path
from typing import Any

import k8sdatapath
from k8sdatapath.errors import ClosedError, LabError
from k8sdatapath.net.cgroup import Cgroup
from k8sdatapath.net.netns import NetNs
from k8sdatapath.pybpf.calls import kernel_error
from k8sdatapath.pybpf.fd import Fd

_HERE = Path(__file__).resolve().parent


def start_keeper(lab: str, owner: Fd) -> subprocess.Popen[bytes]:
    """The process that sweeps ``lab`` when its owner has ended."""
    package = str(Path(k8sdatapath.__file__).resolve().parent.parent)
    path = [package, *(os.path.abspath(entry) for entry in sys.path)]
    return _start("keeper.py", lab, *path, owner=owner)


class Agent:
    """The process inside a host, as seen from outside: see ``agent.py``.

    It is not waited for when it starts: the first request is answered as soon as it is up.
    """

    def __init__(self, name: str, netns: NetNs, cgroup: Cgroup, owner: Fd) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._control, control = socket.socketpair()
        self._closed = False
        self._unread = 0  # answers to requests that were interrupted
        with control:
            self._process = netns.call(
                _start,
                "agent.py",
                str(control.fileno()),
                str(cgroup.path),
                owner=owner,
                pass_fds=(control.fileno(),),
                stderr=subprocess.PIPE,
            )

    def request(self, do: str, **arguments: Any) -> list[int]:
        """Have something done; returns the descriptors of the sockets it made.

        :raises KernelError: the kernel refused it.
        :raises LabError: the agent has died, or does not understand.
        :raises ClosedError: the lab is closed.
        """
        line = json.dumps({"do": do, **arguments}).encode() + b"\n"
        try:
            with self._lock:
                while self._unread:
                    for fd in self._answer()[1]:
                        os.close(fd)
                self._unread += 1
                self._control.sendall(line)
                answer, fds = self._answer()
        except OSError:
            answer, fds = b"", []
        if self._closed:
            for fd in fds:
                os.close(fd)
            raise ClosedError(f"{self._name} is closed, with its lab")
        if not answer.endswith(b"\n"):
            raise LabError(f"the agent of {self._name} has died{self._last_words()}")
        failure = json.loads(answer)
        if "errno" in failure:
            subject = f"{self._name} {arguments.get('port', '')}".rstrip()
            raise kernel_error(failure["errno"], f"make a {do} socket", subject)
        if "error" in failure:
            raise LabError(f"the agent of {self._name} could not do {do!r}: {failure['error']}")
        return fds

    def close(self) -> None:
        """End it."""
        self._closed = True
        self._control.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _answer(self) -> tuple[bytes, list[int]]:
        """A line, and the descriptors with it. ``socket.recv_fds`` would let child processes inherit them."""
        room = socket.CMSG_LEN(array("i").itemsize)
        answer, fds = b"", list[int]()
        while not answer.endswith(b"\n"):
            part, ancillary, _flags, _from = self._control.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
            fds += [fd for _level, _type, data in ancillary for fd in array("i", data)]
            if not part:
                break
            answer += part
        self._unread -= 1
        return answer, fds

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        return (": " + self._process.stderr.read().decode(errors="replace").strip()).rstrip(": ")


def _start(
    script: str,
    *arguments: str,
    owner: Fd,
    pass_fds: tuple[int, ...] = (),
    stderr: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a helper in the calling thread's namespace, out of reach of the terminal's Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_HERE / script), *arguments],
        stdin=owner.number,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )
