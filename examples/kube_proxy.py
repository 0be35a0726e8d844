"""A kube-proxy replacement for one node: python kube_proxy.py NODE UPLINK. Needs root and a kubeconfig."""

import sys
from typing import Any

from k8sdatapath import Node, NodeConfig, PinDir, Reconciler, node_local
from k8sdatapath.kube import KubeWatch


def main(name: str, kubeconfig: str | None = None, **options: Any) -> None:
    """Until it is killed; what it has programmed stays, and the next one goes on from there."""
    config = NodeConfig(name=name, **options)
    with Node.open(config) as node:
        Reconciler(node_local(KubeWatch.from_kubeconfig(kubeconfig), config.name), node.services).run()


if __name__ == "__main__":
    main(sys.argv[1], uplinks=sys.argv[2:], cgroup="/sys/fs/cgroup", pins=PinDir("/sys/fs/bpf/kube-proxy"))
