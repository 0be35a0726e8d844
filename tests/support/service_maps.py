"""The maps of services in memory: what is read out of them, and changes that are watched, or killed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from k8sdatapath import maps
from k8sdatapath.datapath import service_addresses, service_maps, service_table
from k8sdatapath.datapath.service_table import CONTRACT
from k8sdatapath.maps.memory import in_memory
from k8sdatapath.model import (
    Backend,
    Exposure,
    Frontend,
    FrontendKind,
    Scope,
    Service,
)
from k8sdatapath.tables import backends, grace, sets
from k8sdatapath.tables.backends import FREE
from k8sdatapath.tables.frontends import NO_SERVICE

MMAPABLE = 1 << 10


def memory(*, frontends: int = 16, slots: int = 64, rows: int = 64) -> dict[str, Any]:
    """The maps of the contract, in this process."""
    sizes = {"kd_frontends": frontends, "kd_sets": 3 * frontends, "kd_slots": slots, "kd_backends": rows}
    return {
        name: in_memory(
            kind, name, sizes.get(name, 16), flags=MMAPABLE if issubclass(kind, maps.Array) else 0
        )
        for name, kind in CONTRACT.items()
    }


def service(port: int, *hosts: int, **options: Any) -> Service:
    return Service(
        "10.96.0.10", port, backends=[Backend(f"10.244.1.{host}", 8080) for host in hosts], **options
    )


def answers(kernel: dict[str, Any], frontend: Frontend, scope: Scope = Scope.CLUSTER) -> set[Backend]:
    """Who might get a new flow, by the lookups that the programs make, in code of their own."""
    found = [
        row
        for key, row in kernel["kd_frontends"].items()
        if (key.addr, key.port) == (frontend.address, frontend.port)
    ]
    if not found:
        return set()
    run = kernel["kd_sets"][3 * found[0].service + scope]
    ids = [
        kernel["kd_slots"][slot // 16].backend[slot % 16]
        for slot in range(run.offset, run.offset + run.count)
    ]
    rows = [(id, kernel["kd_backends"][id & 0x3FFFFF]) for id in ids]
    assert all(row.id == id for id, row in rows), "a slot names a row of another generation"
    return {Backend(row.addr, row.port) for _, row in rows}


def rows_in_use(kernel: dict[str, Any]) -> int:
    return sum(row.state != FREE for row in kernel["kd_backends"])


NODE_PORT = Exposure("node_port", "192.0.2.11", 30080)


LOAD_BALANCER = Exposure("load_balancer", "203.0.113.1", 80)


def exposed(*hosts: int, local: tuple[int, ...] = (), **options: Any) -> Service:
    backends = [Backend(f"10.244.1.{host}", 8080, local=host in local) for host in hosts]
    return Service("10.96.0.10", 80, backends=backends, exposed=[NODE_PORT, LOAD_BALANCER], **options)


def frontend_of(exposure: Exposure) -> Frontend:
    return Frontend(exposure.address, exposure.port)


def shut(kernel: dict[str, Any]) -> dict[str, FrontendKind]:
    """Addresses whose other ports are nobody's, by their rows."""
    return {
        str(key.addr): FrontendKind(row.kind)
        for key, row in kernel["kd_frontends"].items()
        if row.service == NO_SERVICE and (key.port, key.protocol) == (0, 0)
    }


def watched(look: Callable[[], object], action: Callable[[], object]) -> None:
    """Run ``action``, looking at every line of the library's writing code."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in WRITING:
            return None
        sys.settrace(None)
        look()
        sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)


WRITING = {
    module.__file__ for module in (service_table, service_maps, service_addresses, sets, backends, grace)
}


class Killed(BaseException):
    """Stands for kill -9: no line runs after it, not even in a finally."""


def killed_at(line: int, action: Callable[[], object]) -> bool:
    """Run ``action``, but stop dead before the ``line``-th line of the library's writing code."""
    left = line

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in WRITING:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


def find(services: list[Service], frontend: Frontend) -> set[Backend]:
    return next((set(s.backends) for s in services if frontend in s.frontends), set())
