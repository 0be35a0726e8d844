"""Manifests that change, and the kernel that follows: a PolicyReconciler and its parts. Run it as root."""

from pathlib import Path
from tempfile import TemporaryDirectory

from k8sdatapath import Lab
from k8sdatapath.identity import MemoryStore, StoreAllocator
from k8sdatapath.kube.static_source import StaticSource
from k8sdatapath.node import IdentifiedPods, Node, NodeConfig
from k8sdatapath.reconcile import PolicyReconciler

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}
spec: {{nodeName: n1}}
status: {{podIPs: [{{ip: {address}}}]}}
---
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop, generation: 1}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
"""
KEY = ("NetworkPolicy", "shop", "api")

with (
    TemporaryDirectory() as directory,
    Lab.start(datapath=False) as lab,
    Node.open(NodeConfig(name="n1", netns=lab.node.netns, policy=True)) as node,
):
    web, cart, api = (lab.pod(name) for name in ("web", "cart", "api"))
    api.serve_http(8080, "paid")
    files, known = Path(directory), IdentifiedPods(node)
    for pod in web, cart, api:  # cut off, until it is known who they are
        known.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
    (files / "pods.yaml").write_text(
        "".join(POD.format(name=p.name, address=p.address) for p in (web, cart, api))
    )

    source = StaticSource(files, raw=True, interval=0.1)
    numbers = StoreAllocator(MemoryStore(), "n1")
    enforced = node.policy
    assert enforced is not None
    with PolicyReconciler(
        source, "n1", enforced, numbers, on_pods=known.know, alone=True
    ).start() as reconciler:
        for generation, text in enumerate((POLICY, POLICY.replace("app: web", "app: cart")), 1):
            text = text.replace("generation: 1", f"generation: {generation}")
            (files / "policy.yaml").write_text(text)
            reconciler.wait_enforced(KEY, 10, generation=generation)
            print(f"generation {generation}: {reconciler.status(KEY)}")
            for pod in web, cart:
                try:
                    print(f"  {pod.name}: {pod.get(f'http://{api.address}:8080', timeout=1).text}")
                except TimeoutError:
                    print(f"  {pod.name}: nothing")
