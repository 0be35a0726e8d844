"""Ask the production program what it would do with a packet: no device, no traffic. Needs root."""

from k8sdatapath import Backend, ObjectSpec, Service, ServiceTable, programs
from k8sdatapath.net import packet

CLIENT = "10.244.1.2"
services = [
    Service("10.96.0.10", 80, backends=[Backend("10.244.1.3", 8080)]),
    Service("10.96.0.53", 53, "UDP", backends=[Backend("10.244.1.4", 5353)]),
    Service("10.96.0.99", 80),  # nobody behind it
]
packets = [
    packet.tcp(CLIENT, "10.96.0.10", 40000, 80),
    packet.udp(CLIENT, "10.96.0.53", 40000, 53),
    packet.tcp(CLIENT, "10.96.0.99", 40000, 80),
    packet.tcp(CLIENT, "192.0.2.1", 40000, 80),  # no service
]

# redirect=False: a translated packet is left to the node's stack, for there is no device to hand it to
with ObjectSpec.from_file("pod").with_config(redirect=False).load() as pod:
    with ServiceTable.bind(pod) as table:
        table.upsert(*services)
    from_pod = pod.program("from_pod", programs.TC)
    for sent in packets:
        result = from_pod.run(sent)
        print(f"{packet.parse(sent)}\n  {programs.TcAction(result.retval).name}: {packet.parse(result.data)}")
