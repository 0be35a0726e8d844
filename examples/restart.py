"""A datapath that outlives its process: what is pinned runs on, the next process takes over. Needs root."""

from k8sdatapath import Backend, Node, NodeConfig, PinDir, Service

pins = PinDir("/sys/fs/bpf/k8sdatapath-example")
config = NodeConfig(name="example", pins=pins)
web = Service("10.96.0.10", 80, backends=[Backend("10.244.1.3", 8080), Backend("10.244.1.4", 8080)])

try:
    with Node.open(config) as node:
        print("first:", node.services.upsert(web))
    print("nobody runs; pinned are", ", ".join(pins.maps))

    with Node.open(config) as node:
        print("taken over:", *node.services)
        print("wanted is there:", node.services.plan([web]).empty)
finally:
    pins.remove()
