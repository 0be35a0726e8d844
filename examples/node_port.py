"""A service that the world outside can dial: a port of the node, open to local pods only. Needs root."""

from attrs import evolve

from k8sdatapath import Exposure, FrontendKind, Lab, Service

with Lab.start(nodes=2) as lab:
    outside = lab.external("outside")
    near, far = lab.pod("near"), lab.pod("far", lab.nodes[1])
    for pod in (near, far):
        pod.serve_http(8080, pod.name)
    port = Exposure(FrontendKind.NODE_PORT, lab.node.address, 30080)

    everywhere = Service("10.96.0.10", 80, backends=[near.at(8080), far.at(8080)], exposed=[port])
    lab.node.services.upsert(everywhere)
    answers = {outside.get(f"http://{lab.node.address}:30080").text for _ in range(30)}
    print("from outside, any pod answers:", sorted(answers))
    seen = outside.get(f"http://{lab.node.address}:30080")
    print("the client sees", seen.peer)

    here = [evolve(near.at(8080), local=True), far.at(8080)]
    local = Service("10.96.0.10", 80, backends=here, exposed=[port], external_local=True)
    lab.node.services.upsert(local)
    answers = {outside.get(f"http://{lab.node.address}:30080").text for _ in range(30)}
    print("with externalTrafficPolicy Local:", sorted(answers))
    print(
        "it sees its client:", outside.get(f"http://{lab.node.address}:30080").headers["x-peer"].split(":")[0]
    )
