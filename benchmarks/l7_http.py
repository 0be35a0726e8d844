"""What HTTP policy costs a request: none, in the kernel, and by proxies that are given the same rules."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from attrs import frozen

from benchmarks import harness
from benchmarks.harness import CPU, HERE, Figure, median, ratios, rounds_of
from k8sdatapath import Lab
from k8sdatapath.datapath.l7_policy import L7Policy, L7Port
from k8sdatapath.lab.lab import Pod

BENCH = "l7_http"
ROUNDS = 9
SECONDS = 1
CONNECTIONS = (1, 32)
PATH = "/products/17"
SERVER = 8000  # for the proxies, which are in the same pod
PORTS = {
    "none": 8001,
    "ours": 8005,
    "ours_1000": 8006,
    "ours_told": 8007,
    "envoy": 8003,
    "haproxy": 8004,
    "nginx": 8002,
}
TITLES = {
    "none": "nobody looks at requests",
    "ours": "k8sdatapath, 5 rules",
    "ours_1000": "k8sdatapath, 1,000 rules",
    "ours_told": "k8sdatapath, 5 rules, all is told",
    "envoy": "Envoy, 5 rules",
    "haproxy": "haproxy, 5 rules",
    "nginx": "nginx, 5 rules",
}
RULES = (
    ("GET", "/health"),
    ("GET", "/products(/[0-9]+)?"),
    ("POST", "/orders"),
    ("GET", "/orders/[0-9]+"),
    ("DELETE", "/orders/[0-9]+"),
)


@frozen
class Slice:
    """What a client measured in one slice of time; microseconds."""

    per_second: float
    p50: float
    p99: float


def main() -> None:
    print(f"{BENCH}: GET {PATH} over kept connections, {ROUNDS} rounds, medians\n")
    with tempfile.TemporaryDirectory(prefix="kdbench-") as directory, Lab.start(policy=True, l7=True) as lab:
        client = lab.pod("client", labels={"app": "client"})
        server = lab.pod("server", labels={"app": "server"})
        lab.apply(json.dumps(policy()))
        l7 = lab.node.datapath.l7
        l7.upsert(L7Port(server.address, PORTS["ours_told"], observe=True))
        with servers(server, Path(directory)), read_events(l7):
            for name in PORTS:
                check(client, server, name)
            found = {count: measure(client, server, count) for count in CONNECTIONS}
        lost = l7.stats().get("LOST_EVENT", 0)
    for count, slices in found.items():
        harness.table(
            [
                f"{count} connections" if count > 1 else "1 connection",
                "requests/s",
                "p50 us",
                "p99 us",
                "CPU us",
            ],
            [(TITLES[name], *_row(parts)) for name, parts in slices.items()],
        )
    told = 2 * sum(part.per_second for slices in found.values() for part in slices["ours_told"]) * SECONDS
    print(f"of what was to be told, {lost / told:.0%} was lost: it was not read as fast as that\n")
    harness.report(BENCH, ROUNDS, figures(found))


def _row(parts: list[Slice]) -> tuple[float, ...]:
    """All that takes part runs on one CPU, which has nothing else to do: so it is the CPU's time as well."""
    rps = median(part.per_second for part in parts)
    return rps, median(part.p50 for part in parts), median(part.p99 for part in parts), 1e6 / rps


def measure(client: Pod, server: Pod, connections: int) -> dict[str, list[Slice]]:
    slices: dict[str, list[Slice]] = defaultdict(list)
    for _, name in rounds_of(tuple(TITLES), ROUNDS):
        slices[name].append(ask(client, server, name, connections))
    return dict(slices)


_RESULT = re.compile(r"50%\s+([\d.]+)(us|ms|s).*99%\s+([\d.]+)(us|ms|s).*Requests/sec:\s+([\d.]+)", re.DOTALL)
_UNITS = {"us": 1, "ms": 1e3, "s": 1e6}


def ask(client: Pod, server: Pod, name: str, connections: int) -> Slice:
    """A slice of requests to a port, as many as come back."""
    url = f"http://{server.address}:{PORTS[name]}{PATH}"
    wrk = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", url]
    said = client.exec([*_pinned(), *wrk], check=True).stdout
    if "Non-2xx" in said or not (result := _RESULT.search(said)):
        raise RuntimeError(f"{name}: {said}")
    p50, unit50, p99, unit99, rps = result.groups()
    return Slice(float(rps), float(p50) * _UNITS[unit50], float(p99) * _UNITS[unit99])


def check(client: Pod, server: Pod, name: str) -> None:
    """That what is measured is up, and does what it is for."""
    at = f"http://{server.address}:{PORTS[name]}"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError):
            answers = client.get(at + PATH).status, client.get(f"{at}/admin").status
            if answers == (200, 200 if name == "none" else 403):
                return
            raise RuntimeError(f"{name} answers {answers}")
        time.sleep(0.05)
    raise RuntimeError(f"{name} is not up")


# ---- who looks at requests


def policy() -> dict[str, object]:
    """At our two ports a client may make some requests, at all others any."""
    many = [("GET", f"/service-{number}/[a-z]+/[0-9]*") for number in range(1000 - len(RULES))]
    ours = {"ours": RULES, "ours_1000": (*many, *RULES), "ours_told": RULES}
    asked = [
        {
            "ports": [{"port": str(PORTS[name]), "protocol": "TCP"}],
            "rules": {"http": [{"method": method, "path": path} for method, path in rules]},
        }
        for name, rules in ours.items()
    ]
    others = [{"port": str(port), "protocol": "TCP"} for name, port in PORTS.items() if name not in ours]
    allowed = {
        "fromEndpoints": [{"matchLabels": {"app": "client"}}],
        "toPorts": [*asked, {"ports": others}],
    }
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "server", "namespace": "default"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [allowed]},
    }


@contextmanager
def read_events(l7: L7Policy) -> Iterator[None]:
    """Somebody reads what requests and responses there are, on another processor if there is one."""
    over = Event()

    def read() -> None:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {CPU} or {CPU})  # of this thread
        while not over.is_set():
            if not l7.events():
                over.wait(0.001)

    reader = Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()


@contextmanager
def servers(pod: Pod, directory: Path) -> Iterator[None]:
    """The server and the proxies before it."""
    plain = "".join(
        f"listen {PORTS[name]} backlog=1024; " for name in ("none", "ours", "ours_1000", "ours_told")
    )
    server = f"server {{ listen {SERVER}; {plain} location / {{ return 200 ok; }} }}"
    envoy = str(Path(sys.executable).parent / "envoy")
    with ExitStack() as running:
        for name, settings, command in (
            ("server.conf", _filled("nginx.conf", server), ["nginx", "-p", ".", "-c"]),
            ("nginx.conf", _filled("nginx.conf", _nginx()), ["nginx", "-p", ".", "-c"]),
            ("haproxy.cfg", _filled("haproxy.cfg", _haproxy()), ["haproxy", "-f"]),
            ("envoy.yaml", _filled("envoy.yaml", _envoy()), [envoy, *_ENVOY, "--config-path"]),
        ):
            own = directory / name.replace(".", "-")
            own.mkdir()
            (own / name).write_text(settings)
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = running.enter_context(pod.popen([*_pinned(), *command, name], cwd=own, **quiet))
            running.callback(process.terminate)
        yield


_ENVOY = ("--concurrency", "1", "--disable-hot-restart", "-l", "off")


def _filled(name: str, part: str) -> str:
    return (HERE / "proxies" / name).read_text().replace("RULES", part)


def _pinned() -> list[str]:
    """On one CPU, with the same weight for all and more than others have; sessions share it in groups."""
    weigh = "{ echo -20 > /proc/self/autogroup; } 2> /dev/null"
    return ["nice", "-n", "-20", "sh", "-c", f'{weigh}; exec taskset -c "$@"', "sh", str(CPU)]


def _nginx() -> str:
    known = "".join(f'"~^{method} {path}$" 1; ' for method, path in RULES)
    return (
        f'map "$request_method $request_uri" $allowed {{ default 0; {known} }}\n'
        f"upstream server {{ server 127.0.0.1:{SERVER}; keepalive 64; }}\n"
        f"server {{ listen {PORTS['nginx']} backlog=1024; if ($allowed = 0) {{ return 403; }}\n"
        "location / { proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection ''; } }"
    )


def _haproxy() -> str:
    lines = []
    for number, (method, path) in enumerate(RULES):
        lines += [f"acl method{number} method {method}", f"acl path{number} path_reg ^{path}$"]
    either = " or ".join(f"method{number} path{number}" for number in range(len(RULES)))
    return "\n".join(f"  {line}" for line in (*lines, f"http-request allow if {either}"))


def _envoy() -> str:
    return json.dumps(
        [
            {
                "and_rules": {
                    "rules": [
                        {"header": {"name": ":method", "string_match": {"exact": method}}},
                        {"url_path": {"path": {"safe_regex": {"regex": path}}}},
                    ]
                }
            }
            for method, path in RULES
        ]
    )


# ---- figures


def figures(found: dict[int, dict[str, list[Slice]]]) -> dict[str, Figure]:
    many = found[CONNECTIONS[-1]]
    rps = {name: [part.per_second for part in parts] for name, parts in many.items()}
    p99 = {name: [part.p99 for part in parts] for name, parts in many.items()}

    def ratio(above: str, below: str, least: float) -> Figure:
        return Figure(
            ratios(rps[above], rps[below]),
            f"ratio of requests/s, {CONNECTIONS[-1]} connections",
            f"{TITLES[above]}: {median(rps[above]):,.0f}/s",
            f"{TITLES[below]}: {median(rps[below]):,.0f}/s",
            at_least=least,
        )

    return {
        "ours_over_none_rps": ratio("ours", "none", 0.85),
        "ours_told_over_none_rps": ratio("ours_told", "none", 0.75),
        "ours_over_envoy_rps": ratio("ours", "envoy", 4),
        "rules_1000_over_5": ratio("ours_1000", "ours", 0.95),
        "p99_ours_over_none": Figure(
            ratios(p99["ours"], p99["none"]),
            f"ratio of p99, {CONNECTIONS[-1]} connections",
            f"{median(p99['ours']):,.0f} us",
            f"{median(p99['none']):,.0f} us",
            at_most=1.5,
        ),
    }


if __name__ == "__main__":
    main()
