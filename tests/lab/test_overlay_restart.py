"""The tunnel outlives its processes: kill -9 at either end while traffic goes through, and nobody notices."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from k8sdatapath.lab import Lab
from k8sdatapath.lab.addressing import node_place, pod_networks, tunnel_addresses
from k8sdatapath.model import Peer
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Node, NodeConfig, Tunnel
from k8sdatapath.pins import PinDir
from tests.lab.test_restart import SMALL, Traffic, killed_at_work, steady, traffic_goes_on

#: A process that changes peers without pause, until it is killed. Its standard output is its progress.
CHURN = """
import random, sys
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Node
from tests.lab.test_overlay_restart import configure, peers
name, number, pins, seed = sys.argv[1:]
chance = random.Random(int(seed))
with NetNs.open(name) as netns, Node.open(configure(netns, int(number), pins)) as node:
    while True:
        node.overlay.plan(peers(int(number), *chance.sample(range(20, 90), 20))).apply()
        print(".", flush=True)
"""


def configure(netns: NetNs, number: int, pins: str) -> NodeConfig:
    tunnel = Tunnel(addresses=tunnel_addresses(number))
    return NodeConfig(
        netns=netns, uplinks="eth0", pins=PinDir(pins), tunnel=tunnel, socket_lb=False, capacity=SMALL
    )


def peers(number: int, *others: int) -> list[Peer]:
    """The other node, and some that are not there."""
    return [Peer(node_place(each).v4.ip, pod_networks(each)) for each in (3 - number, *others)]


@pytest.mark.timeout(180)
def test_killed_at_either_end_of_the_tunnel_nothing_breaks() -> None:
    chance = random.Random(5)
    with ExitStack() as own:
        lab = own.enter_context(Lab.start(nodes=2, datapath=False))
        pins = {node.number: PinDir(f"/sys/fs/bpf/kdtest-{lab.name}-{node.number}") for node in lab.nodes}
        for each in pins.values():
            own.callback(each.remove)
        configs = {
            node.number: configure(node.netns, node.number, str(pins[node.number])) for node in lab.nodes
        }
        client, web = (lab.pod(f"pod{node.number}", node) for node in lab.nodes)
        web.serve_http(8080, "web")
        for pod in client, web:
            with Node.open(configs[pod.node.number]) as node:
                assert node.overlay is not None
                node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
                node.overlay.plan(peers(pod.node.number)).apply()
                node.services.upsert(steady(str(web.address)))
        traffic = Traffic(client)
        traffic.start()
        try:
            for seed in range(8):
                at = lab.nodes[seed % 2]
                arguments = [at.netns.name, str(at.number), str(pins[at.number]), str(seed)]
                killed_at_work(CHURN, arguments, chance)
                with Node.open(configs[at.number]) as node:
                    assert node.overlay is not None
                    node.overlay.plan(peers(at.number)).apply()
                    assert node.overlay.dump() == tuple(peers(at.number))
                    through = node.counters()["TO_PEER"].packets
                    traffic_goes_on(traffic)
                    assert node.counters()["TO_PEER"].packets > through
                traffic_goes_on(traffic)  # and without any process
            while traffic.requests <= 500:
                traffic_goes_on(traffic)
        finally:
            traffic.over.set()
            traffic.join()
            traffic.held.close()
        assert not traffic.failures, (len(traffic.failures), traffic.requests, traffic.failures[:3])
