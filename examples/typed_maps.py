"""Maps with typed keys and values: one by one, in bulk, by longest prefix. Needs root."""

from ipaddress import IPv4Address, ip_address, ip_network

from k8sdatapath import maps, struct
from k8sdatapath.layout import addr, network, u32, u64


@struct
class Usage:
    """As a BPF program would declare it: struct { __u64 bytes; __u32 packets; __u32 drops; };"""

    bytes: u64
    packets: u32
    drops: u32 = 0


with maps.Hash[addr, Usage].create("usage", 4096) as usage:
    usage[IPv4Address("10.0.0.1")] = Usage(1500, 1)
    usage.update_many({ip_address(f"10.0.1.{host}"): Usage(64 * host, host) for host in range(1, 101)})
    print(usage)
    print(usage[ip_address("10.0.1.7")], "of", sum(each.packets for each in usage.values()), "packets")
    print("removed:", usage.delete_many(address for address in list(usage) if usage[address].packets < 50))

with maps.LPMTrie[network, u32].create("zones", 1024) as zones:
    zones[ip_network("10.0.0.0/8")] = 1
    zones[ip_network("10.0.1.0/24")] = 2
    zones[ip_network("fd00::/16")] = 3
    for address in ("10.9.9.9", "10.0.1.1", "fd00::1", "192.0.2.1"):
        print(address, "is in zone", zones.match(ip_address(address)))
