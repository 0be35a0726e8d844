"""Where a packet would go and why, asked before it is sent, and without changing anything. Needs root."""

from k8sdatapath import Frontend, Lab, Service
from k8sdatapath.datapath.explanation import Place

with Lab.start() as lab:
    client, one, two = (lab.pod(name) for name in ("client", "one", "two"))
    web = Service("10.96.0.10", 80, backends=[one.at(8080), two.at(8080)], selection="maglev")
    lab.node.services.upsert(web)
    explain = lab.node.datapath.explain

    print("a packet of a pod:", explain(web.frontend, client.address), sep="\n")
    print()
    print("a process of the node:", explain(web.frontend, lab.node.address, Place.SOCKET), sep="\n")
    print()
    unknown = explain(Frontend("10.96.0.10", 81), client.address)
    print(f"another port: {unknown.outcome.name}, {unknown.outcome.meaning}")
    print("flows that explaining has made:", len(list(lab.node.datapath.flows.flows())))
