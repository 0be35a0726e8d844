"""Flows seen, forgotten in time, and a socket that does not outlive its backend. Needs root."""

import socket
import time

from k8sdatapath import Lab, Service
from k8sdatapath.datapath.flow import FlowFilter, FlowState

with Lab.start() as lab:
    client, one, two = (lab.pod(name) for name in ("client", "one", "two"))
    outside = lab.external("outside")  # its packets are balanced as they come in, the client when it connects
    one.serve_udp(53, "one")
    two.serve_udp(53, "two")
    lab.node.services.upsert(Service("10.96.0.10", 53, "UDP", backends=[one.at(53)]))

    outside.udp("10.96.0.10", 53, "who?")
    flows = lab.node.datapath.flows
    for flow in flows.flows(FlowFilter(state=FlowState.ANSWERED)):
        print(flow)
    print("forgotten now:", flows.collect())
    print("forgotten in three minutes:", flows.collect(now=int(time.monotonic()) + 180))

    with client.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(("10.96.0.10", 53))
        lab.node.services.upsert(Service("10.96.0.10", 53, "UDP", backends=[two.at(53)]))
        print("destroyed:", *lab.node.datapath.reap_sockets())
        try:
            sock.recv(100)
        except OSError as error:
            print("its process is told:", error.strerror)
    print("and reaches", client.udp("10.96.0.10", 53, "who?", connected=True).data.decode())
