"""A service in front of two pods, seen by a client and by the kernel. Needs root."""

from collections import Counter

from k8sdatapath import Lab, Service

with Lab.start() as lab:
    client, one, two = (lab.pod(name) for name in ("client", "one", "two"))
    one.serve_http(8080, "one")
    two.serve_http(8080, "two")

    web = Service("10.96.0.10", 80, backends=[one.at(8080), two.at(8080)])
    print(lab.node.services.upsert(web))

    print("answers:", Counter(client.get("http://10.96.0.10").text for _ in range(100)))
    for backend, flows in lab.node.services.flows(web.frontend).items():
        print(f"the kernel gave {flows} flows to {backend}")
