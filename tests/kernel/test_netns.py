from __future__ import annotations

import contextvars
import errno
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from k8sdatapath.errors import ClosedError, KernelError
from k8sdatapath.net.netns import NetNs
from tests.support.nobody import as_nobody

pytestmark = pytest.mark.kernel


def fresh_name() -> str:
    return f"kdlab-test-{secrets.token_hex(3)}"


def where_am_i() -> str:
    return os.readlink("/proc/thread-self/ns/net")


@pytest.fixture
def netns():
    with NetNs.create(fresh_name()) as made:
        yield made


def test_a_new_namespace_has_only_loopback(netns: NetNs) -> None:
    assert netns.call(socket.if_nameindex) == [(1, "lo")]


def test_other_tools_know_it_by_its_name(netns: NetNs) -> None:
    inside = subprocess.run(
        ["ip", "netns", "exec", netns.name, "readlink", "/proc/self/ns/net"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert inside.stdout.strip() == netns.call(where_am_i)


def test_leaving_the_with_of_a_created_one_removes_the_name() -> None:
    with NetNs.create(fresh_name()) as netns:
        assert netns.path.exists()
    assert not netns.path.exists()


def test_leaving_the_with_of_an_opened_one_keeps_the_name(netns: NetNs) -> None:
    with NetNs.open(netns.name) as again:
        assert again.cookie == netns.cookie
    assert netns.path.exists()


def test_call_returns_what_the_function_returns(netns: NetNs) -> None:
    assert netns.call(divmod, 7, 2) == (3, 1)


def test_call_raises_what_the_function_raises(netns: NetNs) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        netns.call(int, "x")


def test_the_caller_stays_where_it_is(netns: NetNs) -> None:
    before = where_am_i()
    assert netns.call(where_am_i) != before
    assert where_am_i() == before


def where_threads_are() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found.add(os.readlink(task / "ns/net"))
    return found


def test_no_thread_that_was_inside_lives_on(netns: NetNs) -> None:
    netns.call(where_am_i)
    assert not [thread for thread in threading.enumerate() if netns.name in thread.name]
    deadline = time.monotonic() + 10
    while (found := where_threads_are()) != {
        where_am_i()
    }:  # the kernel's end of a thread comes a little later
        assert time.monotonic() < deadline, found


def test_calls_nest(netns: NetNs) -> None:
    with NetNs.create(fresh_name()) as other:
        outer, inner = netns.call(lambda: (where_am_i(), other.call(where_am_i)))
        assert (outer, inner) == (netns.call(where_am_i), other.call(where_am_i))
        assert outer != inner


def test_context_variables_come_along(netns: NetNs) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    assert netns.call(variable.get) == "set"


def test_processes_started_inside_are_inside(netns: NetNs) -> None:
    process = netns.call(
        subprocess.run, ["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == netns.call(where_am_i)


def test_a_socket_made_inside_belongs_to_it(netns: NetNs) -> None:
    so_netns_cookie = 71
    with netns.call(socket.socket) as sock:
        number = sock.getsockopt(socket.SOL_SOCKET, so_netns_cookie, 8)
    assert int.from_bytes(number, sys.byteorder) == netns.cookie


def test_cookies_tell_namespaces_apart(netns: NetNs) -> None:
    with NetNs.current() as here, NetNs.from_pid(os.getpid()) as same:
        assert here.cookie == same.cookie != netns.cookie
        assert here.name == ""


def test_a_name_can_be_had_once(netns: NetNs) -> None:
    with pytest.raises(KernelError, match=f"create network namespace: .*{netns.name}") as caught:
        NetNs.create(netns.name)
    assert caught.value.errno == errno.EEXIST
    assert netns.call(socket.if_nameindex) == [(1, "lo")]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        NetNs.create(name)


def test_opening_what_is_not_there() -> None:
    with pytest.raises(KernelError, match="kdlab-nobody"):
        NetNs.open("kdlab-nobody")


def test_opening_what_is_no_namespace(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with NetNs.open(file) as netns, pytest.raises(KernelError, match="enter"):
        netns.call(where_am_i)


def test_use_after_close(netns: NetNs) -> None:
    with NetNs.open(netns.name) as again:
        pass
    again.close()
    with pytest.raises(ClosedError):
        again.call(where_am_i)
    assert "closed" in repr(again)


def test_without_the_capability_the_error_names_it(netns: NetNs) -> None:
    run = as_nobody(
        "from k8sdatapath.errors import PermissionDeniedError\n"
        "from k8sdatapath.net.netns import NetNs\n"
        "try: NetNs.current().call(int)\n"
        "except PermissionDeniedError as error: print(error)"
    )
    assert "CAP_SYS_ADMIN" in run.stdout, run.stderr
