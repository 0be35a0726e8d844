"""How much of the kernel's memory a service with three backends takes, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, say
from benchmarks.ours import model
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.node import Capacity
from k8sdatapath.objects import Object, ObjectSpec

BENCH = "svc_memory"
SERVICES = 100_000
ENDPOINTS = 3
SLOTS = 4  # of a service: runs of slots come in powers of two
MAPS = ("kd_frontends", "kd_sets", "kd_slots", "kd_backends")  # those whose size follows from the services


def main() -> None:
    print(f"{BENCH}: maps that hold {SERVICES:,} services with {ENDPOINTS} backends each, bytes\n")
    size = Capacity(services=SERVICES, backends=SERVICES * ENDPOINTS, slots=SERVICES * SLOTS)
    spec = ObjectSpec.from_file("pod").with_maps(**size.max_entries)
    with spec.load() as loaded, ServiceTable.bind(loaded) as table:
        table.plan(model(service) for service in kubeproxy.services(SERVICES, endpoints=ENDPOINTS)).apply()
        held = len(table.dump())
        if held != SERVICES:
            raise RuntimeError(f"the table holds {held} services")
        say(f"filled: {held} services")
        taken = {name: memory(loaded, name) for name in loaded.map_fds}
    ours = {name: taken[name] for name in MAPS}
    harness.table(
        ["map", "entries", "bytes", "a service"],
        [
            (name, f"{size.max_entries[name]:,}", f"{taken_by:,}", taken_by / SERVICES)
            for name, taken_by in ours.items()
        ],
    )
    bytes_each = sum(ours.values()) / SERVICES
    harness.report(
        BENCH,
        1,
        {
            "map_bytes_per_service": Figure(
                (bytes_each,),
                "bytes of kernel map memory",
                f"{sum(ours.values()) / 2**20:.1f} MiB in {', '.join(MAPS)}",
                "none",
                at_most=300,
            )
        },
    )


def memory(loaded: Object, name: str) -> int:
    """Bytes of a map, as its descriptor tells them."""
    told = Path(f"/proc/self/fdinfo/{loaded.map_fds[name].number}").read_text()
    fields = dict(line.split(":", 1) for line in told.splitlines())
    return int(fields["memlock"])


if __name__ == "__main__":
    main()
