"""One number for each set of labels, the same on every node; here the store they share is in memory."""

from k8sdatapath.identity import Collector, MemoryStore, StoreAllocator
from k8sdatapath.model import Reserved, pod_labels
from k8sdatapath.model.identity import well_known

store = MemoryStore()  # of a cluster: EtcdStore(["https://..."]) or KubeStore(api_client)

with (
    StoreAllocator(store, node="n1", fixed=well_known()) as n1,
    StoreAllocator(store, node="n2", fixed=well_known()) as n2,
):
    namespace = {"kubernetes.io/metadata.name": "shop"}
    web = pod_labels(
        {"app": "web", "pod-template-hash": "5d4f"}, namespace="shop", namespace_labels=namespace
    )
    later = pod_labels(
        {"app": "web", "pod-template-hash": "77b9"}, namespace="shop", namespace_labels=namespace
    )

    one, two = n1.acquire(web), n2.acquire(later)
    assert one == two  # a new revision of the same pods is the same identity
    print(one.number, *one.labels, sep="\n  ")

    other = n2.acquire(pod_labels({"app": "web"}, namespace="test"))
    assert other.number != one.number  # another namespace: somebody else

    assert n2.lookup(one.number) == one
    print(n1.lookup(Reserved.WORLD))

    for node, identity in (n1, one), (n2, two), (n2, other):
        node.release(identity)
    print(Collector(store).collect())  # nothing yet: what is unused waits
