"""A BPF program of one's own: compiled, loaded, attached, read through a typed map. Needs root and clang."""

import socket

from k8sdatapath import Direction, First, NetNs, compile, maps, programs
from k8sdatapath.layout import u16, u64
from k8sdatapath.net.netlink import Netlink

SOURCE = r"""
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, __u64);
} seen SEC(".maps");

SEC("tc")
int count(struct __sk_buff *skb)
{
	__u16 protocol = bpf_ntohs(skb->protocol);
	__u64 none = 0, *packets;

	bpf_map_update_elem(&seen, &protocol, &none, BPF_NOEXIST);
	packets = bpf_map_lookup_elem(&seen, &protocol);
	if (packets)
		__sync_fetch_and_add(packets, 1);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
"""


def bring_up() -> None:
    with Netlink() as net:
        net.set_up("lo")


def dial(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as tcp:
        tcp.connect_ex((address, 9))


with NetNs.create("own-program") as netns, compile(SOURCE).load() as loaded:
    netns.call(bring_up)
    program = loaded.program("count", programs.TC)
    with program.attach("lo", Direction.EGRESS, netns=netns, anchor=First()) as link:
        print(link)
        # nobody listens, so each SYN is answered by a RST: two packets on the loopback device
        for address in ("127.0.0.1", "127.0.0.1", "::1"):
            netns.call(dial, address)
    for protocol, packets in sorted(loaded.map("seen", maps.Hash[u16, u64]).items()):
        print(f"{packets} packets of protocol {protocol:#06x}")
