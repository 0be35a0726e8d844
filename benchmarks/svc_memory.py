"""How much of the kernel's memory a service with three backends takes, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import harness, kubeproxy
from benchmarks.harness import Figure, say
from benchmarks.ours import model
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.model import IPNetwork
from k8sdatapath.node import Capacity
from k8sdatapath.objects import Object, ObjectSpec

BENCH = "svc_memory"
SERVICES = 100_000
ENDPOINTS = 3
SLOTS = 4  # of a service: runs of slots come in powers of two
MAPS = ("kd_frontends", "kd_sets", "kd_slots", "kd_backends")  # those whose size follows from the services


NETWORKS = (kubeproxy.SERVICE_NETWORK,)  # of all cluster IPs; and so programs need no row for each


def main() -> None:
    print(f"{BENCH}: maps that hold {SERVICES:,} services with {ENDPOINTS} backends each, bytes\n")
    known = fill(NETWORKS)
    print("\nwithout service networks, with a row for each cluster IP\n")
    say(f"{sum(fill(()).values()) / SERVICES:.0f} bytes a service")
    harness.report(
        BENCH,
        1,
        {
            "map_bytes_per_service": Figure(
                (sum(known.values()) / SERVICES,),
                "bytes of kernel map memory",
                f"{sum(known.values()) / 2**20:.1f} MiB in {', '.join(MAPS)}",
                "none",
                at_most=300,
            )
        },
    )


def fill(networks: Sequence[IPNetwork]) -> dict[str, int]:
    """Bytes of each map when it is full."""
    rows = SERVICES if networks else 2 * SERVICES
    size = Capacity(services=SERVICES, backends=SERVICES * ENDPOINTS, slots=SERVICES * SLOTS)
    entries = size.max_entries | {"kd_frontends": rows}
    spec = ObjectSpec.from_file("pod").with_maps(**entries)
    with spec.load() as loaded, ServiceTable.bind(loaded, service_networks=networks) as table:
        table.plan(model(service) for service in kubeproxy.services(SERVICES, endpoints=ENDPOINTS)).apply()
        held = len(table.dump())
        if held != SERVICES:
            raise RuntimeError(f"the table holds {held} services")
        say(f"filled: {held} services")
        taken = {name: memory(loaded, name) for name in MAPS}
    harness.table(
        ["map", "entries", "bytes", "a service"],
        [(name, f"{entries[name]:,}", f"{by:,}", by / SERVICES) for name, by in taken.items()],
    )
    return taken


def memory(loaded: Object, name: str) -> int:
    """Bytes of a map, as its descriptor tells them."""
    told = Path(f"/proc/self/fdinfo/{loaded.map_fds[name].number}").read_text()
    fields = dict(line.split(":", 1) for line in told.splitlines())
    return int(fields["memlock"])


if __name__ == "__main__":
    main()
