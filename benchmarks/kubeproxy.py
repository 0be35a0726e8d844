"""Rule sets of the shape that kube-proxy writes, for iptables and for nftables.

Shapes follow pkg/proxy/iptables and pkg/proxy/nftables of Kubernetes 1.31 to 1.34: the same chains, hooks,
matches and order, for ClusterIP services with traffic policy Cluster and a cluster CIDR. Where
kube-proxy has a mode for large clusters (over 1,000 endpoints: no comments on endpoint rules), so have these.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

from attrs import evolve, frozen

from benchmarks.topology import NODE_IP, POD_CIDR, inside

SERVICE_CIDR = "10.96.0.0/12"
SERVICE_PORT = 80
SERVICE_NETWORK = IPv4Network("10.96.0.0/12")
_VIPS = int(SERVICE_NETWORK.network_address)
_ENDPOINTS = int(IPv4Address("10.128.0.0"))  # nobody's: only the tested service is ever dialled
_LARGE = 1000
_MARK = "0x4000"
_CHUNK = 600  # services a transaction: nft validates all chains anew in each, and slows within one


@frozen
class Service:
    """One ClusterIP service; told to every variant alike."""

    number: int
    vip: str
    endpoints: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        return f"bench/svc-{self.number}:http"


def services(count: int, tested: Sequence[tuple[str, int]] = (), *, endpoints: int = 3) -> Iterator[Service]:
    """``count`` services; the last one, where a walk through a list ends, has ``tested`` as endpoints."""
    for number in range(count):
        first = _ENDPOINTS + number * endpoints
        own = tuple((str(IPv4Address(first + i)), 8080) for i in range(endpoints))
        last = number == count - 1 and tested
        yield Service(number, str(IPv4Address(_VIPS + 1 + number)), tuple(tested) if last else own)


def vip_of_last(count: int) -> str:
    return str(IPv4Address(_VIPS + count))


def with_other_endpoint(service: Service, generation: int) -> Service:
    """The same service after one of its pods was replaced."""
    kept = service.endpoints[1:]
    fresh = (str(IPv4Address(_ENDPOINTS + (1 << 22) + generation)), 8080)
    return evolve(service, endpoints=(fresh, *kept))


def _hash(text: str, length: int) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest())[:length].decode()


# --- iptables -----------------------------------------------------------------------------------------

_IPTABLES_FILTER = f"""*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "external portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "external portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "forwarding rules" -m mark --mark {_MARK}/{_MARK} -j ACCEPT
-A KUBE-FORWARD -m comment --comment "conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""

_IPTABLES_NAT_CHAINS = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
"""

_IPTABLES_NAT_RULES = f"""-A PREROUTING -m comment --comment "service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark {_MARK}/{_MARK} -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark {_MARK}
-A KUBE-POSTROUTING -m comment --comment "service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark {_MARK}
"""

_IPTABLES_LAST = (
    '-A KUBE-SERVICES -m comment --comment "nodeports; NOTE: this must be the last rule in this chain" '
    "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
)


class IPTables:
    """kube-proxy's iptables mode on the legacy back end."""

    @staticmethod
    def load(netns: str, wanted: Sequence[Service], *, comments: bool = True) -> float:
        """Load the whole set; seconds.

        :param comments: kube-proxy's, on the rule that dispatches to each service. They make that rule, and
            the memory that each connection's first packet walks through, more than twice as large.
        """
        large = sum(len(service.endpoints) for service in wanted) > _LARGE
        chains, dispatch, rules = [], [], []
        for service in wanted:
            dispatch.append(_iptables_dispatch(service, comments))
            own_chains, own_rules = _iptables_service(service, large)
            chains += own_chains
            rules += own_rules
        nat = "\n".join([*chains, _IPTABLES_NAT_RULES, *dispatch, _IPTABLES_LAST, *rules, "COMMIT\n"])
        return _restore(netns, _IPTABLES_FILTER + _IPTABLES_NAT_CHAINS + nat)

    @staticmethod
    def change(netns: str, before: Service, after: Service) -> float:
        """Rewrite the chains of one service, nothing else; seconds.

        Less than kube-proxy does: it writes all of KUBE-SERVICES again with every change.
        """
        chains, rules = _iptables_service(after, True)
        gone = {_sep(before, *e) for e in before.endpoints} - {_sep(after, *e) for e in after.endpoints}
        flushed = [f":{chain} - [0:0]" for chain in gone]
        deleted = [f"-X {chain}" for chain in gone]
        return _restore(netns, "\n".join(["*nat", *chains, *flushed, *rules, *deleted, "COMMIT\n"]))


def _svc(service: Service) -> str:
    return "KUBE-SVC-" + _hash(service.name + "tcp", 16)


def _sep(service: Service, ip: str, port: int) -> str:
    return "KUBE-SEP-" + _hash(f"{service.name}tcp{ip}:{port}", 16)


def _iptables_dispatch(service: Service, comments: bool) -> str:
    return f"-A KUBE-SERVICES {_iptables_match(service, comments)} -j {_svc(service)}"


def _iptables_match(service: Service, comments: bool = True) -> str:
    comment = f'-m comment --comment "{service.name} cluster IP" ' if comments else ""
    return f"{comment}-m tcp -p tcp -d {service.vip} --dport {SERVICE_PORT}"


def _iptables_service(service: Service, large: bool) -> tuple[list[str], list[str]]:
    chain = _svc(service)
    chains = [f":{chain} - [0:0]"]
    rules = [f"-A {chain} {_iptables_match(service)} ! -s {POD_CIDR} -j KUBE-MARK-MASQ"]
    ends = []
    left = len(service.endpoints)
    for ip, port in service.endpoints:
        sep = _sep(service, ip, port)
        note = "" if large else f'-m comment --comment "{service.name} -> {ip}:{port}" '
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        rules.append(f"-A {chain} {note}{chance}-j {sep}")
        left -= 1
        chains.append(f":{sep} - [0:0]")
        note = "" if large else f'-m comment --comment "{service.name}" '
        ends.append(f"-A {sep} {note}-s {ip} -j KUBE-MARK-MASQ")
        ends.append(f"-A {sep} {note}-m tcp -p tcp -j DNAT --to-destination {ip}:{port}")
    return chains, rules + ends


def _restore(netns: str, text: str) -> float:
    return _timed(inside(netns, "iptables-legacy-restore", "--noflush"), text)


# --- nftables -----------------------------------------------------------------------------------------

_T = "ip kube-proxy"
_PORT_KEY = "meta l4proto . th dport"
_DISPATCH_KEY = f"ip daddr . {_PORT_KEY}"

_NFT_BASE = f"""add table {_T}
add set {_T} cluster-ips {{ type ipv4_addr ; }}
add set {_T} nodeport-ips {{ type ipv4_addr ; }}
add map {_T} firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map {_T} no-endpoint-nodeports {{ type inet_proto . inet_service : verdict ; }}
add map {_T} no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map {_T} service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map {_T} service-nodeports {{ type inet_proto . inet_service : verdict ; }}
add chain {_T} cluster-ips-check
add chain {_T} firewall-check
add chain {_T} mark-for-masquerade
add chain {_T} masquerading
add chain {_T} nodeport-endpoints-check
add chain {_T} reject-chain
add chain {_T} services
add chain {_T} service-endpoints-check
add chain {_T} filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110 ; }}
add chain {_T} filter-output-pre-dnat {{ type filter hook output priority -110 ; }}
add chain {_T} filter-forward {{ type filter hook forward priority 0 ; }}
add chain {_T} filter-input {{ type filter hook input priority 0 ; }}
add chain {_T} filter-output {{ type filter hook output priority 0 ; }}
add chain {_T} nat-output {{ type nat hook output priority -100 ; }}
add chain {_T} nat-postrouting {{ type nat hook postrouting priority 100 ; }}
add chain {_T} nat-prerouting {{ type nat hook prerouting priority -100 ; }}
add rule {_T} cluster-ips-check ip daddr @cluster-ips reject
add rule {_T} cluster-ips-check ip daddr {{ {SERVICE_CIDR} }} drop
add rule {_T} filter-prerouting-pre-dnat ct state new jump firewall-check
add rule {_T} filter-forward ct state new jump service-endpoints-check
add rule {_T} filter-forward ct state new jump cluster-ips-check
add rule {_T} filter-input ct state new jump nodeport-endpoints-check
add rule {_T} filter-input ct state new jump service-endpoints-check
add rule {_T} filter-output ct state new jump service-endpoints-check
add rule {_T} filter-output ct state new jump cluster-ips-check
add rule {_T} filter-output-pre-dnat ct state new jump firewall-check
add rule {_T} firewall-check {_DISPATCH_KEY} vmap @firewall-ips
add rule {_T} mark-for-masquerade mark set mark or {_MARK}
add rule {_T} masquerading mark and {_MARK} == 0 return
add rule {_T} masquerading mark set mark xor {_MARK}
add rule {_T} masquerading masquerade fully-random
add rule {_T} nat-output jump services
add rule {_T} nat-postrouting jump masquerading
add rule {_T} nat-prerouting jump services
add rule {_T} nodeport-endpoints-check ip daddr @nodeport-ips {_PORT_KEY} vmap @no-endpoint-nodeports
add rule {_T} reject-chain reject
add rule {_T} services {_DISPATCH_KEY} vmap @service-ips
add rule {_T} services ip daddr @nodeport-ips {_PORT_KEY} vmap @service-nodeports
add rule {_T} service-endpoints-check {_DISPATCH_KEY} vmap @no-endpoint-services
add element {_T} nodeport-ips {{ {NODE_IP} }}
"""


class NFTables:
    """kube-proxy's nftables mode."""

    @staticmethod
    def load(netns: str, wanted: Sequence[Service]) -> float:
        """Load the whole set, in transactions of a few hundred services; seconds.

        In one transaction, 10,000 services take more than a minute; the packets see the same rules.
        """
        seconds = _nft(netns, _NFT_BASE)
        for start in range(0, len(wanted), _CHUNK):
            lines = [line for service in wanted[start : start + _CHUNK] for line in _nft_service(service)]
            seconds += _nft(netns, "\n".join(lines) + "\n")
        return seconds

    @staticmethod
    def change(netns: str, before: Service, after: Service) -> float:
        """One endpoint of one service replaced, as kube-proxy's partial sync does; seconds."""
        gone = [e for e in before.endpoints if e not in after.endpoints]
        new = [e for e in after.endpoints if e not in before.endpoints]
        lines = [f"add chain {_T} {_nft_endpoint(after, *e)}" for e in new]
        lines += [line for e in new for line in _nft_endpoint_rules(after, *e)]
        lines.append(f"flush chain {_T} {_nft_chain(after)}")
        lines += _nft_service_rules(after)
        for endpoint in gone:
            name = _nft_endpoint(before, *endpoint)
            lines += [f"flush chain {_T} {name}", f"delete chain {_T} {name}"]
        return _nft(netns, "\n".join(lines) + "\n")


def _nft_name(kind: str, name: str) -> str:
    return f"{kind}-{_hash(name, 8)}-{name}"


def _nft_chain(service: Service) -> str:
    return _nft_name("service", f"bench/svc-{service.number}/tcp/http")


def _nft_endpoint(service: Service, ip: str, port: int) -> str:
    return _nft_name("endpoint", f"bench/svc-{service.number}/tcp/http__{ip}/{port}")


def _nft_service(service: Service) -> Iterator[str]:
    chain = _nft_chain(service)
    yield f"add chain {_T} {chain}"
    for endpoint in service.endpoints:
        yield f"add chain {_T} {_nft_endpoint(service, *endpoint)}"
    yield from _nft_service_rules(service)
    for endpoint in service.endpoints:
        yield from _nft_endpoint_rules(service, *endpoint)
    yield f"add element {_T} cluster-ips {{ {service.vip} }}"
    yield f"add element {_T} service-ips {{ {service.vip} . tcp . {SERVICE_PORT} : goto {chain} }}"


def _nft_service_rules(service: Service) -> Iterator[str]:
    chain = _nft_chain(service)
    names = [_nft_endpoint(service, *endpoint) for endpoint in service.endpoints]
    choice = " , ".join(f"{number} : goto {name}" for number, name in enumerate(names))
    away = f"ip daddr {service.vip} tcp dport {SERVICE_PORT} ip saddr != {POD_CIDR}"
    yield f"add rule {_T} {chain} {away} jump mark-for-masquerade"
    yield f"add rule {_T} {chain} numgen random mod {len(names)} vmap {{ {choice} }}"


def _nft_endpoint_rules(service: Service, ip: str, port: int) -> Iterator[str]:
    chain = _nft_endpoint(service, ip, port)
    yield f"add rule {_T} {chain} ip saddr {ip} jump mark-for-masquerade"
    yield f"add rule {_T} {chain} meta l4proto tcp dnat to {ip}:{port}"


def _nft(netns: str, text: str) -> float:
    return _timed(inside(netns, "nft", "-f", "-"), text)


def _timed(command: list[str], text: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[:500]}")
    return time.perf_counter() - start
