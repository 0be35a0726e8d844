"""The truth tables of the conformance suite, with real packets between the pods of a lab.

All pairs of a case are tried at once. A port that nobody listens at refuses whoever is let through, so that
an answer comes either way; silence is a denial.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import time
from collections.abc import Iterator

import pytest

from k8sdatapath import Lab
from k8sdatapath.kube.policy import parse_policies
from k8sdatapath.lab.host import Host
from tests.conformance.test_policy import AROUND, CASES, NAMED, expected

pytestmark = pytest.mark.lab

ELSEWHERE = ("cidr", "CIDR", "ipBlock", "networks", "addresses", "odes", "toFQDNs", "domainNames")
"""What names addresses of the tables' own world, or labels of its nodes, or DNS names."""
CONCERNED = [case for case in CASES if not any(each in json.dumps(case.values[0]) for each in ELSEWHERE)]
UDP_PORTS = sorted(
    {int(port.removesuffix("/UDP")) for case in CONCERNED for port in case.values[1] if port.endswith("/UDP")}
)
PATIENCE = 10.0  # for answers that are to come
SILENCE = 0.1  # without answers, where none is to come


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Lab, dict[str, Host]]]:
    with Lab.start(policy=True) as lab:
        hosts: dict[str, Host] = {"node": lab.node, "out": lab.external("out")}
        for space in "xy":
            for name in "ab":
                labels = {"app": name, "empty": ""} if name == "a" else {"app": name}
                hosts[f"{space}/{name}"] = lab.pod(
                    f"{space}{name}",
                    labels=labels,
                    namespace=space,
                    namespace_labels=AROUND[space],
                    ports=NAMED[name],
                )
        for name, host in hosts.items():
            for port in UDP_PORTS if "/" in name else ():
                host.serve_udp(port)
        yield lab, hosts


def begun(source: Host, destination: Host, port: int, protocol: str) -> socket.socket:
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    made = source.socket(socket.AF_INET, kind)
    made.setblocking(False)
    made.connect_ex((str(destination.address), port))
    if protocol == "UDP":
        made.send(b"x")
    return made


def answered(sockets: dict[str, socket.socket], wanted: set[str]) -> set[str]:
    """Those that an answer has come to: all that are wanted, and then others for a while."""
    by_fd = {each.fileno(): name for name, each in sockets.items()}
    poll = select.poll()
    for each in sockets.values():
        poll.register(each, select.POLLIN | (select.POLLOUT if each.type == socket.SOCK_STREAM else 0))
    found: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        events = poll.poll(1000 * (PATIENCE if wanted - found else SILENCE))
        for fd, _ in events:
            poll.unregister(fd)
            error = sockets[by_fd[fd]].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error in (0, errno.ECONNREFUSED):
                found.add(by_fd[fd])
        if not events and not wanted - found:
            break
    return found


@pytest.mark.parametrize(("documents", "truth"), CONCERNED)
def test_truth(
    world: tuple[Lab, dict[str, Host]], documents: list[object], truth: dict[str, dict[str, list[str]]]
) -> None:
    lab, hosts = world
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    lab.node.policy.apply(parse_policies(text, "case.json"))
    sockets: dict[str, socket.socket] = {}
    wanted: set[str] = set()
    try:
        for port, table in truth.items():
            number, _, protocol = port.partition("/")
            for source, one in hosts.items() if protocol in ("TCP", "UDP") else ():
                for destination, other in hosts.items():
                    pods = {name for name in (source, destination) if "/" in name}
                    if source == destination or not pods or (protocol == "UDP" and "/" not in destination):
                        continue
                    name = f"{source} > {destination} {port}"
                    sockets[name] = begun(one, other, int(number), protocol)
                    if expected(table, source, destination):
                        wanted.add(name)
        found = answered(sockets, wanted)
    finally:
        for each in sockets.values():
            each.close()
    assert sorted(found) == sorted(wanted)


def test_there_are_many() -> None:
    assert len(CONCERNED) >= 80
