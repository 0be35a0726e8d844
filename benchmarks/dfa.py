"""What HTTP rules cost: seconds until 1,000 are one automaton, and nanoseconds for a byte of a request."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Figure, median, rounds_of
from k8sdatapath import Lab
from k8sdatapath.datapath.http_tables import http_tables
from k8sdatapath.datapath.l7_policy import L7Policy, L7Port
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.programs import SkSkb
from k8sdatapath.programs.base import Program

BENCH = "dfa"
ROUNDS = 7
REQUESTS = 2_000  # of a length, a round
LENGTHS = (64, 1_024)  # of a path; either request is one segment
RULES = {1: 8001, 1_000: 8002}  # how many there are at which port
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


def main() -> None:
    print(f"{BENCH}: rules of method and path, {ROUNDS} rounds\n")
    with harness.pinned():
        compiled = tuple(compile_once() for _ in range(ROUNDS))
        costs = run_times()
    slopes = {
        count: tuple(
            (longer - shorter) / (LENGTHS[1] - LENGTHS[0])
            for shorter, longer in zip(*(costs[count, length] for length in LENGTHS), strict=True)
        )
        for count in RULES
    }
    harness.table(
        ["rules", f"ns a request, path of {LENGTHS[0]}", f"path of {LENGTHS[1]}", "ns a byte"],
        [
            (count, *(median(costs[count, length]) for length in LENGTHS), median(slopes[count]))
            for count in RULES
        ],
    )
    asked = f"paths of {LENGTHS[0]} and {LENGTHS[1]} bytes"
    harness.report(
        BENCH,
        ROUNDS,
        {
            "compile_s_1000_rules": Figure(compiled, "s", "1,000 rules", "none", at_most=2.0),
            "ns_per_byte": Figure(slopes[1_000], "ns", f"1,000 rules, {asked}", "1 rule", at_most=5.0),
        },
    )


def rules(count: int) -> list[HTTPRule]:
    """As many as are asked for, of which the last one is met."""
    many = [HTTPRule(method="GET", path=f"/service-{number}/[a-z]+/[0-9]*") for number in range(count - 1)]
    return [*many, HTTPRule(method="GET", path="/products/[a-z]+")]


def compile_once() -> float:
    wanted = rules(1_000)
    begun = time.perf_counter()
    http_tables(wanted)
    return time.perf_counter() - begun


def run_times() -> dict[tuple[int, int], list[float]]:
    """Nanoseconds that the program takes for a request, by how many rules there are and how long it is."""
    found: dict[tuple[int, int], list[float]] = {(n, length): [] for n in RULES for length in LENGTHS}
    with ExitStack() as own:
        lab = own.enter_context(Lab.start(datapath=False))
        l7 = own.enter_context(L7Policy.load())
        own.enter_context(counted())
        client, server = lab.pod("client"), lab.pod("server")
        l7.attach(lab.node.cgroup.path)
        l7.upsert(*(L7Port(server.address, port, rules(count)) for count, port in RULES.items()))
        program = l7._loaded.program("l7_received", SkSkb)
        ends = {}
        for count, port in RULES.items():
            listening = own.enter_context(server.socket())
            listening.bind(("", port))
            listening.listen()
            one = own.enter_context(client.tcp(server.address, port))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends[count] = one, own.enter_context(listening.accept()[0])
        for _, (count, length) in rounds_of(tuple(found), ROUNDS):
            found[count, length].append(cost(program, *ends[count], length))
    return found


def cost(program: Program, one: socket.socket, other: socket.socket, length: int) -> float:
    path = b"/products/".ljust(length, b"a")
    request = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path
    before = program.info
    for _ in range(REQUESTS):
        one.sendall(request)
        if len(other.recv(4096)) != len(request):
            raise RuntimeError("a request came in pieces")
    after = program.info
    return (after.run_time_ns - before.run_time_ns) / (after.run_count - before.run_count)


@contextmanager
def counted() -> Iterator[None]:
    """Have the kernel count the run time of programs, all of this machine's."""
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


if __name__ == "__main__":
    main()
