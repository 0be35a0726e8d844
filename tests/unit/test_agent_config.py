"""An agent's configuration: what is understood, what is refused and where it stands."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.agent.options import OPTIONS
from k8sdatapath.agent.values import Acceleration, Listen
from k8sdatapath.errors import ConfigError
from k8sdatapath.kube.egress import egress_of
from k8sdatapath.kube.objects import KubePod
from k8sdatapath.model import Selection
from k8sdatapath.model.host_firewall import HostFirewall
from tests.api.graph import ROOT

HELM = """
kubeProxyReplacement: "true"
k8sServiceHost: 192.0.2.1
k8sServicePort: 6443
devices: eth0 eth1
bpf: {masquerade: false, root: /sys/fs/bpf, lbServiceMapMax: 1000, preallocateMaps: true}
enableIPv4Masquerade: false
socketLB: {enabled: false, hostNamespaceOnly: true}
loadBalancer: {algorithm: maglev, acceleration: best-effort, mode: snat}
nodePort: {addresses: ["192.0.2.0/24", "2001:db8::/64"], range: "30000,32000", bindProtection: false}
ipam: {mode: kubernetes}
hubble:
  enabled: true
  listenAddress: ":4244"
  eventBufferCapacity: "8191"
  relay: {enabled: true}
  metrics: {enabled: [drop, "dns:query"]}
ipv6: {enabled: false}
cgroup: {hostRoot: /run/cgroup}
debug: {enabled: true}
"""


@pytest.fixture
def write(tmp_path: Path) -> object:
    def write(text: str) -> Path:
        path = tmp_path / "agent.yaml"
        path.write_text(text)
        return path

    return write


def test_without_a_word_it_is_a_node_of_a_cluster_with_nothing_attached() -> None:
    config = AgentConfig.load()
    assert (config.uplinks, config.cgroup, config.sources) == ((), None, ())
    assert str(config.listen) == "127.0.0.1:10256"
    assert config.node_name


def test_helm_values_of_cilium_mean_what_they_mean_there(write) -> None:
    config = AgentConfig.load(write(HELM))
    assert (config.api_host, config.api_port) == ("192.0.2.1", 6443)
    assert config.uplinks == ("eth0", "eth1")
    assert config.selection is Selection.MAGLEV
    assert config.acceleration is Acceleration.BEST_EFFORT
    assert config.node_port_networks == (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64"))
    assert config.node_port_range == (30000, 32000)
    assert (config.socket_lb, config.pod_sockets, config.protect_node_ports) == (False, False, False)
    assert (str(config.bpffs), str(config.cgroup)) == ("/sys/fs/bpf/k8sdatapath", "/run/cgroup")
    assert (config.capacity.services, config.log_level) == (1000, "debug")
    assert (config.hubble, config.hubble_listen, config.flows_kept) == (True, "[::]:4244", 8191)
    assert config.hubble_metrics == ("drop", "dns:query")
    told = "\n".join(config.ignored)
    for name in ("bpf.preallocateMaps", "ipam", "hubble.relay", "ipv6.enabled"):
        assert f"agent.yaml: {name}" in told
    assert len(config.ignored) == 4


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("{tls: {enabled: true}}", "hubble.tls.certFile: needed for TLS"),
        ("{tls: {certFile: a}}", "hubble.tls: a certificate and its key go together"),
        ("{listenAddress: here}", "hubble.listenAddress: 'here' is not an address and a port"),
        ("{eventBufferCapacity: 0}", "hubble.eventBufferCapacity: 0 is too few"),
        ("{eventBufferCapacity: 16777217}", "hubble.eventBufferCapacity: 16777217 is too many"),
        ("{metrics: {enabled: [drops]}}", "hubble.metrics.enabled: there is no metric 'drops'"),
    ],
)
def test_flows_are_not_served_in_a_way_that_nobody_meant(write, said: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        AgentConfig.load(write(f"hubble: {said}"))


def test_a_node_is_guarded_as_it_is_said(write) -> None:
    assert AgentConfig.load(write("policy: true")).guard is None
    usual = AgentConfig.load(write("{policy: true, hostFirewall: {enabled: true}}"))
    assert usual.guard == HostFirewall()
    own = AgentConfig.load(write("{policy: true, hostFirewall: {enabled: true, incoming: [2222/TCP]}}"))
    assert own.guard == HostFirewall(incoming=["2222/TCP"])
    with pytest.raises(ConfigError, match=r"hostFirewall\.enabled: needs policy: true"):
        AgentConfig.load(write("hostFirewall: {enabled: true}"))


def test_how_policies_are_enforced_is_taken_over_while_it_runs(write) -> None:
    said = AgentConfig.load(write("{policyAuditMode: true, policyDenyResponse: icmp}"))
    assert (said.policy_audit, said.policy_answer) == (True, True)
    differences = AgentConfig.load(write("{policyAuditMode: false, policyDenyResponse: none}")).differences(
        said
    )
    assert set(differences) == {"policyAuditMode", "policyDenyResponse"}
    assert all(OPTIONS[each].live for each in differences)
    with pytest.raises(ConfigError, match="policyDenyResponse: 'drop' is neither icmp nor none"):
        AgentConfig.load(write("policyDenyResponse: drop"))


def test_what_the_chart_leaves_empty_says_nothing(write) -> None:
    empty = """
k8sServiceHost: ""
k8sServicePort: ""
devices: ""
routingMode: ""
tunnelProtocol: ""
tunnelPort: 0
MTU: 0
kubeProxyReplacementHealthzBindAddr: ""
bpf: {root: "", ctTcpMax: ~}
"""
    assert AgentConfig.load(write(empty)) == AgentConfig.load()


def test_masquerading_is_said_by_family(write) -> None:
    assert AgentConfig.load().masquerading is None
    both = AgentConfig.load(write("bpf: {masquerade: true}\nuplinks: eth0\n" + NATIVE)).masquerading
    assert both is not None
    assert [str(each) for each in both.exclude] == ["10.0.0.0/8", "fd00::/8"]
    one = AgentConfig.load(write("enableIPv4Masquerade: true\nuplinks: eth0\n" + NATIVE)).masquerading
    assert one is not None
    assert any(ip_network("2001:db8::/32").subnet_of(each) for each in one.exclude if each.version == 6)
    assert [str(each) for each in one.exclude if each.version == 4] == ["10.0.0.0/8"]


def test_pods_leave_under_the_addresses_of_the_first_rule_about_them(write) -> None:
    rules = """
egress:
- {namespaces: [billing], podSelector: {matchLabels: {app: mail}}, addresses: [192.0.2.50]}
- {namespaces: [billing], addresses: [192.0.2.51, "2001:db8::51"]}
- podSelector: {matchExpressions: [{key: tier, operator: In, values: [edge, front]}]}
  nodes: [n2]
  addresses: ["2001:db8::52"]
"""
    config = AgentConfig.load(write("bpf: {masquerade: true}\nuplinks: eth0\n" + NATIVE + rules))

    def leaves_as(namespace: str, *labels: str, node: str = "n1") -> list[str]:
        addresses = ip_address("10.1.1.2"), ip_address("fd00::2")
        pod = KubePod(namespace, "pod", node, addresses, (), ("", ""), labels=frozenset(labels))
        found = egress_of(config.egress, [pod])
        assert {each.network_address for each in found} <= set(addresses)
        return sorted(str(each) for each in found.values())

    assert leaves_as("billing", "app=mail", "tier=edge") == ["192.0.2.50", "2001:db8::51"]
    assert leaves_as("billing", "app=web") == ["192.0.2.51", "2001:db8::51"]
    assert leaves_as("shop", "tier=edge") == []
    assert leaves_as("shop", "tier=edge", node="n2") == ["2001:db8::52"]
    assert leaves_as("shop", "app=mail") == []


NATIVE = "ipv4NativeRoutingCIDR: 10.0.0.0/8\nipv6NativeRoutingCIDR: fd00::/8"


def test_flags_are_stronger_than_the_file(write) -> None:
    path = write("nodeName: n1\nuplinks: [eth0]\nlisten: '[::1]:9000'\nlog: {level: error}")
    config = AgentConfig.load(path, {"nodeName": "n2", "uplinks": ["eth1", "eth2"]})
    assert (config.node_name, config.uplinks) == ("n2", ("eth1", "eth2"))
    assert config.listen == Listen("::1", 9000)
    assert AgentConfig.load(path, {"listen": ":80"}).listen == Listen("::", 80)
    assert AgentConfig.load(path, {"listen": "none"}).listen is None
    assert AgentConfig.load(path).differences(config) == ("nodeName", "uplinks")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodeNam: n1", "nodeNam: unknown; did you mean 'nodeName'?"),
        ("bpf: {masquarade: true}", "bpf.masquarade: unknown; did you mean 'bpf.masquerade'?"),
        ("frobnicate: 1", "frobnicate: unknown"),
        ("kubeProxyReplacement: false", "kubeProxyReplacement: cannot be false"),
        ("loadBalancer: {algorithm: rr}", "loadBalancer.algorithm: 'rr' is none of random, maglev"),
        ("loadBalancer: {mode: dsr}", "loadBalancer.mode: must be snat"),
        ("{policy: true, etcd: {keyFile: x}}", "etcd.certFile: needed with etcd.keyFile"),
        ("{policy: true, identityGC: {heartbeatTimeout: 0}}", "identityGC.heartbeatTimeout: cannot be 0"),
        ("{policy: true, identityGC: {grace: soon}}", "identityGC.grace: 'soon' is no number of seconds"),
        ("{policy: true, source: x}", "identityAllocationMode: cannot be crd: objects come from no API"),
        (
            "{policy: true, identityAllocationMode: etcd}",
            "etcd.endpoints: needed with identityAllocationMode",
        ),
        (
            "identityAllocationMode: crdd",
            "identityAllocationMode: 'crdd' is none of crd, etcd",
        ),
        (
            "{policy: true, identityAllocationMode: memory, routingMode: tunnel, tunnelAddresses: 10.0.0.1}",
            "identityAllocationMode: cannot be memory: through a tunnel nodes tell each other numbers",
        ),
        ("routingMode: bridged", "routingMode: 'bridged' is neither tunnel nor native"),
        ("capacity: 5", "capacity: 5 is not a mapping; there is capacity.services, "),
        ("log: debug", "log: 'debug' is not a mapping; there is log.level, log.format"),
        ("socketLB: false", "socketLB: False is not a mapping"),
        ("devices: eth+", "devices: 'eth+' is a pattern"),
        ("k8sServiceHost: auto", "k8sServiceHost: 'auto' is not an address"),
        ("k8sServicePort: 70000", "k8sServicePort: 70000 is not a port"),
        ("routingMode: tunnel", "tunnelAddresses: needed with routingMode: tunnel"),
        (
            "{routingMode: tunnel, autoDirectNodeRoutes: true}",
            "autoDirectNodeRoutes: with routingMode: tunnel there is a tunnel instead",
        ),
        ("egress: [{addresses: [192.0.2.50]}]", "egress: nothing is masqueraded"),
        ("egress: {addresses: [192.0.2.50]}", "egress: {'addresses': ['192.0.2.50']} is not a list"),
        ("egress: [{}]", "egress: [0].addresses: missing"),
        ("egress: [{addresses: []}]", "egress: [0].addresses: one address is needed, or one of each family"),
        ("egress: [{addresses: [192.0.2.50, 192.0.2.51]}]", "egress: [0].addresses: one address is needed"),
        ("egress: [{namespace: x}]", "egress: [0].namespace: no such field: did you mean 'namespaces'?"),
        ("egress: [{addresses: [192.0.2.300]}]", "egress: [0].addresses[0]: "),
        ("egress: [{addresses: [0.0.0.0]}]", "egress: [0].addresses[0]: nothing leaves as 0.0.0.0"),
        ("bpf: {masquerade: true}", "there are no uplinks that pods could leave by"),
        ("bpf: {masquerade: true}\nuplinks: eth0", "ipv4NativeRoutingCIDR: needed to masquerade"),
        ("tunnelProtocol: gre", "tunnelProtocol: 'gre' is none of vxlan, geneve"),
        ("loadBalancer: {acceleration: native}", "there are no uplinks that it could be for"),
        ("listen: localhost", "listen: 'localhost' is not an address and a port"),
        ("listen: localhost:80", "listen: 'localhost' is not an IP address"),
        ("capacity: {services: 0}", "capacity.services: 0 is too few"),
        ("capacity: {services: lots}", "capacity.services: 'lots' is not a number"),
        ("nodePort: {range: 9-8}", "nodePort.range: '9-8' ends before it begins"),
        ("nodePort: {addresses: [192.0.2.300/24]}", "nodePort.addresses"),
        ("uplinks: {}", "uplinks: {} is not a list"),
        ("socketLB: {enabled: perhaps}", "socketLB.enabled: 'perhaps' is neither true nor false"),
        ("log: {level: loud}", "log.level: 'loud' is none of debug"),
        ("bpf: {root: /x}\nbpffs: /y", "bpffs: bpffs is said otherwise elsewhere"),
        ("source: [a]\nkubeconfig: b", "objects come from one of these only"),
        ("cniSocket: /x\npodDevicePattern: v*", "the plugin says which devices"),
        ("- 1", "one mapping is expected"),
        ("{}\n---\n{}", "one mapping is expected"),
        ("a: [", "line 2"),
        ("uplinks: eth0\nuplinks: eth1", "given twice"),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        AgentConfig.load(write(text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nosuch\.yaml: No such file"):
        AgentConfig.load(tmp_path / "nosuch.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        AgentConfig.load(tmp_path / "big.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        AgentConfig.load(tmp_path / "latin.yaml")


def test_the_root_of_a_filesystem_is_no_pin_directory() -> None:
    assert AgentConfig.load(flags={"bpffs": "/proc"}).pins == Path("/proc/k8sdatapath")
    assert AgentConfig.load(flags={"bpffs": "/sys/fs/bpf/one"}).pins == Path("/sys/fs/bpf/one")


def test_the_reference_names_what_a_running_agent_takes_over() -> None:
    reference = (ROOT / "docs/reference/agent.md").read_text()
    told = reference.partition("### What a running agent takes over")[2].partition("##")[0]
    patterns = re.findall(r"`([A-Za-z0-9.*]+)`", told)
    live = {word for word, option in OPTIONS.items() if option.live}
    assert {word for word in OPTIONS if any(fnmatch(word, each) for each in patterns)} == live


def test_the_reference_has_a_line_for_each_word() -> None:
    reference = (ROOT / "docs/reference/agent.md").read_text()
    told = set(re.findall(r"^\| `([A-Za-z0-9.]+)`", reference, re.MULTILINE))
    assert told == set(OPTIONS)


def test_the_example_is_understood() -> None:
    config = AgentConfig.load(ROOT / "examples/agent.yaml")
    assert config.ignored == ()
