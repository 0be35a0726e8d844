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
PORTS = {"1 rule": 8001, "1,000 rules": 8002, "2 automata": 8003, "3 automata": 8004, "4 automata": 8005}
WORDS = {
    "2 automata": 8,
    "3 automata": 12,
    "4 automata": 20,
}  # anywhere in a path: too many for one automaton
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


def main() -> None:
    print(f"{BENCH}: rules of method and path, {ROUNDS} rounds\n")
    with harness.pinned():
        compiled = tuple(compile_once() for _ in range(ROUNDS))
        costs = run_times()
    slopes = {
        what: tuple(
            (longer - shorter) / (LENGTHS[1] - LENGTHS[0])
            for shorter, longer in zip(*(costs[what, length] for length in LENGTHS), strict=True)
        )
        for what in PORTS
    }
    short = LENGTHS[0]
    shared = tuple(
        four / one for four, one in zip(costs["4 automata", short], costs["1 rule", short], strict=True)
    )
    harness.table(
        ["rules", f"ns a request, path of {LENGTHS[0]}", f"path of {LENGTHS[1]}", "ns a byte"],
        [
            (what, *(median(costs[what, length]) for length in LENGTHS), median(slopes[what]))
            for what in PORTS
        ],
    )
    asked = f"paths of {LENGTHS[0]} and {LENGTHS[1]} bytes"
    harness.report(
        BENCH,
        ROUNDS,
        {
            "compile_s_1000_rules": Figure(compiled, "s", "1,000 rules", "none", at_most=2.0),
            "ns_per_byte": Figure(
                slopes["1,000 rules"], "ns", f"1,000 rules, {asked}", "1 rule", at_most=5.0
            ),
            "automata_4_over_1": Figure(
                shared,
                "ratio of ns a request",
                f"4 automata, path of {LENGTHS[0]} bytes",
                "1 rule",
                at_most=4.0,
            ),
        },
    )


def rules(what: str) -> list[HTTPRule]:
    """Those of a port, of which the last one is met."""
    paths = [f".*word{number}/.*" for number in range(WORDS.get(what, 0))]
    if what == "1,000 rules":
        paths = [f"/service-{number}/[a-z]+/[0-9]*" for number in range(999)]
    many = [HTTPRule(method="GET", path=path) for path in paths]
    return [*many, HTTPRule(method="GET", path="/products/[a-z]+")]


def compile_once() -> float:
    wanted = rules("1,000 rules")
    begun = time.perf_counter()
    http_tables(wanted)
    return time.perf_counter() - begun


def run_times() -> dict[tuple[str, int], list[float]]:
    """Nanoseconds that the program takes for a request, by the rules that there are and how long it is."""
    found: dict[tuple[str, int], list[float]] = {(n, length): [] for n in PORTS for length in LENGTHS}
    with ExitStack() as own:
        lab = own.enter_context(Lab.start(datapath=False))
        l7 = own.enter_context(L7Policy.load())
        own.enter_context(counted())
        client, server = lab.pod("client"), lab.pod("server")
        l7.attach(lab.node.cgroup.path)
        l7.upsert(*(L7Port(server.address, port, rules(what)) for what, port in PORTS.items()))
        program = l7._loaded.program("l7_received", SkSkb)
        ends = {}
        for what, port in PORTS.items():
            listening = own.enter_context(server.socket())
            listening.bind(("", port))
            listening.listen()
            one = own.enter_context(client.tcp(server.address, port))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends[what] = one, own.enter_context(listening.accept()[0])
        for _, (what, length) in rounds_of(tuple(found), ROUNDS):
            found[what, length].append(cost(program, *ends[what], length))
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
