"""Pods of three nodes talk through a tunnel: nobody between the nodes knows a route to a pod."""

from collections import Counter

from k8sdatapath import Lab, Service


def main() -> None:
    with Lab.start(nodes=3, routing="vxlan") as lab:
        one, two, three = (lab.pod(f"pod{node.number}", node) for node in lab.nodes)
        for pod in two, three:
            pod.serve_http(8080, pod.name)
        overlay = lab.node.datapath.overlay
        for peer in overlay.dump():
            print("pods in", *peer.networks, "are behind", peer.address)
        lab.node.services.upsert(Service("10.96.0.10", 80, backends=[two.at(8080), three.at(8080)]))
        print(Counter(one.get("http://10.96.0.10").text for _ in range(100)))
        sent = lab.node.datapath.counters()["TO_PEER"].packets
        print(f"{sent} packets went through the tunnel")


if __name__ == "__main__":
    main()
