"""What is behind the Services of a cluster, as it changes: python watch_services.py [KUBECONFIG]. No root."""

import sys
from collections import defaultdict

from k8sdatapath.kube import KubeWatch
from k8sdatapath.kube.objects import EndpointSlice, KubeService


def main(kubeconfig: str | None = None) -> None:
    addresses: dict[str, str] = {}
    ready: defaultdict[str, dict[str, int]] = defaultdict(dict)  # of each Service, by slice
    owner: dict[str, str] = {}  # of each slice
    with KubeWatch.from_kubeconfig(kubeconfig, resources=["services", "endpointslices"]) as watch:
        for batch in watch.batches():
            changed = set()
            for event in batch.events:
                name = f"{event.namespace}/{event.name}"
                if event.error is not None:  # what was last known of it holds
                    print(event.error, flush=True)
                    continue
                if event.kind == "Service":
                    addresses.pop(name, None)
                    if isinstance(event.object, KubeService):
                        addresses[name] = ", ".join(map(str, event.object.addresses))
                    changed.add(name)
                    continue
                if name in owner:
                    changed.add(before := owner.pop(name))
                    del ready[before][name]
                if isinstance(event.object, EndpointSlice):
                    owner[name] = service = f"{event.namespace}/{event.object.service}"
                    ready[service][name] = sum(each.ready for each in event.object.endpoints)
                    changed.add(service)
            for name in sorted(changed):
                found = f"at {addresses[name]}" if name in addresses else "no Service"
                print(f"{name}: {found}, {sum(ready[name].values())} ready", flush=True)
            if not batch.synced:
                print(f"so far: {watch!r}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
