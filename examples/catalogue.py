"""A controller of one's own: services from a catalogue in JSON, such as Consul's. Needs root."""

import json
from collections import Counter
from typing import Any

from k8sdatapath import Backend, Feed, Lab, Reconciler, Service


def entry(name: str, pod: Any, status: str = "passing", weight: int = 1) -> dict[str, object]:
    """What ``/v1/health/service/NAME`` says of one instance."""
    virtual = {"Address": "10.96.0.10", "Port": 80}
    return {
        "Service": {
            "Service": name,
            "Address": str(pod.address),
            "Port": 8080,
            "TaggedAddresses": {"virtual": virtual},
            "Weights": {"Passing": weight},
        },
        "Checks": [{"Status": status}],
    }


def services(listing: str) -> list[Service]:
    """A service for each virtual address; instances that pass all their checks are its backends."""
    backends: dict[tuple[str, str, int], list[Backend]] = {}
    for each in json.loads(listing):
        told = each["Service"]
        virtual = told["TaggedAddresses"]["virtual"]
        found = backends.setdefault((told["Service"], virtual["Address"], virtual["Port"]), [])
        if all(check["Status"] == "passing" for check in each["Checks"]):
            found.append(Backend(told["Address"], told["Port"], weight=told["Weights"]["Passing"]))
    return [
        Service(address, port, backends=found, name=name) for (name, address, port), found in backends.items()
    ]


with Lab.start() as lab, Feed() as feed, Reconciler(feed, lab.node.services).start() as reconciler:
    client, one, two = (lab.pod(name) for name in ("client", "one", "two"))
    one.serve_http(8080, "one")
    two.serve_http(8080, "two")

    for listing in (
        [entry("web", one, weight=3), entry("web", two)],
        [entry("web", one, status="critical"), entry("web", two)],
    ):
        wanted = services(json.dumps(listing))
        feed.replace(wanted)
        reconciler.wait_programmed(wanted[0], timeout=5)
        print(
            "answers:", dict(Counter(client.get("http://10.96.0.10").text for _ in range(80)).most_common())
        )

    print("status of web:", reconciler.status(("Service", "", "web")))
    print("slowest change: at most", reconciler.metrics.event_to_kernel.quantile(1) * 1000, "ms")
