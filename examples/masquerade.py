"""A pod talks to a host that knows no pods, and is seen as its node."""

from k8sdatapath import Lab, Masquerade

PODS = ["10.244.0.0/16", "fd00:10:244::/48"]

with Lab.start(masquerade=Masquerade(exclude=PODS)) as lab:
    pod, world = lab.pod("pod"), lab.external("world")
    world.serve_http(8080, "the world")

    answer = pod.get(f"http://{world.address}:8080/")
    seen = answer.headers["x-peer"].rpartition(":")[0]
    print(f"{answer.text} saw {seen}, which is node {lab.node.address}")

    masquerade = lab.node.datapath.masquerade
    assert masquerade is not None
    for mapping in masquerade.mappings():
        print(f"{mapping.pod.address} left as {mapping.leaves_as.address} for {mapping.remote}")
