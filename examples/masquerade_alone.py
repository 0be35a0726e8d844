"""Masquerading by itself: the uplink's programs and a Masquerader, without a Node and without services."""

from k8sdatapath import Lab, Masquerade, Masquerader, ObjectSpec, maps, programs
from k8sdatapath.layout import addr
from k8sdatapath.programs import Direction
from k8sdatapath.tables.endpoints import EndpointRow

with Lab.start(datapath=False) as lab:
    node, pod, world = lab.node, lab.pod("pod"), lab.external("world")
    world.serve_http(8080, "the world")

    def seen() -> str:
        return pod.get(f"http://{world.address}:8080/").headers["x-peer"].rpartition(":")[0]

    print(f"as itself: {seen() == str(pod.address)}")
    spec = ObjectSpec.from_file("host").with_config(masquerade=True, redirect=False)
    with spec.load() as host, Masquerader.bind(host, netns=node.netns) as masquerader:
        print(masquerader.plan(Masquerade(devices="eth0", exclude=["10.244.0.0/16"])).apply())
        # Who is a pod. The rest of the row is for delivering to it, which is left to the node's stack.
        pods = host.map("kd_endpoints", maps.Hash[addr, EndpointRow])
        pods[pod.address] = EndpointRow(0, 0, pod.mac, pod.mac)
        with (
            host.program("to_uplink", programs.TC).attach("eth0", Direction.EGRESS, netns=node.netns),
            host.program("from_uplink", programs.TC).attach("eth0", Direction.INGRESS, netns=node.netns),
        ):
            print(f"as the node: {seen() == str(node.address)}")
            for mapping in masquerader.mappings():
                print(f"{mapping.pod.address} as {mapping.leaves_as.address} -> {mapping.remote}")
    print(f"as itself again: {seen() == str(pod.address)}")
