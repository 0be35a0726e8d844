"""Run one benchmark, or all: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import importlib
import os
import signal
import sys

NAMES = (
    "map_ops",
    "load_time",
    "svc_change",
    "svc_scale",
    "svc_cold",
    "svc_memory",
    "socket_lb",
    "packet_cost",
    "flows",
    "policy_scale",
    "xdp_lb",
    "masq",
    "conntrack",
    "kube_sync",
    "overlay",
    "restart",
    "dfa",
    "l7_http",
    "policy_compile",
    "identity",
    "sockmap",
)


def main(arguments: list[str]) -> int:
    unknown = [name for name in arguments if name not in NAMES]
    if unknown:
        print(f"no benchmark {unknown[0]!r}: there is {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("the benchmarks load BPF programs and make network namespaces: run as root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that namespaces go then as well
    for name in arguments or NAMES:
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
