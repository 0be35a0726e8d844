"""Every word that a configuration may use: what it sets, how it is read, what it is for.

Words with a dot, and some without, are those of Cilium's Helm chart for what both can do, and take Cilium's
values. A value that asks for what this datapath cannot do is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen

from k8sdatapath.agent import values
from k8sdatapath.agent.values import Acceleration, Aggregation, IdentityMode, LogFormat, TunnelKind

__all__ = ["IGNORED", "OPTIONS", "Option"]


@frozen
class Option:
    """A word of the configuration.

    :ivar field: of the configuration; empty for words that can only be confirmed.
    :ivar convert: reads a value, or refuses it with a ``ValueError``.
    :ivar meaning: a sentence for the reference.
    :ivar flag: whether there is a flag for it.
    :ivar live: whether a running agent takes over another value; all others need a new start.
    """

    field: str
    convert: Callable[[Any], Any]
    meaning: str
    flag: bool = False
    live: bool = False


def _must(wanted: bool, why: str) -> Callable[[Any], str]:
    """A switch that has one position."""

    def convert(value: Any) -> str:
        if values.flag(value) is not wanted:
            raise ValueError(f"cannot be {str(not wanted).lower()}: {why}")
        return ""

    return convert


def _either(why: str) -> Callable[[Any], str]:
    """A switch whose second position is noted, not obeyed."""
    return lambda value: "" if values.flag(value) else f"false changes nothing: {why}"


def _word(wanted: str, why: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if str(value).lower() != wanted:
            raise ValueError(f"must be {wanted}: {why}")
        return ""

    return convert


def _debug(value: Any) -> Any:
    return "debug" if values.flag(value) else values.UNSAID


_ALWAYS: Final = "services are always balanced this way"

OPTIONS: Final[Mapping[str, Option]] = {
    # where things are
    "nodeName": Option("node_name", values.text, "this node's, as Pods and EndpointSlices name it", True),
    "kubeconfig": Option("kubeconfig", values.path, "how to reach the API server; else as pods do", True),
    "k8sServiceHost": Option("api_host", values.host, "host of the API server, for pods without services"),
    "k8sServicePort": Option("api_port", values.given_port, "and its port"),
    "source": Option("sources", values.each(values.path), "manifests instead of an API server", True),
    "replay": Option("replay", values.path, "a recording instead of an API server", True),
    "record": Option("record", values.path, "where to write down what the source tells", True),
    "netns": Option("netns", values.text, "network namespace to work in, by name or path", True),
    "uplinks": Option("uplinks", values.texts, "devices towards the rest of the world", True),
    "devices": Option("uplinks", values.devices, "the same"),
    "podDevicePattern": Option("pod_devices", values.texts, "names of devices that may be pods'", True),
    "cniSocket": Option("cni_socket", values.path, "where `k8sdatapath-cni` asks; no discovery then", True),
    "cgroup": Option("cgroup", values.path, "sockets of its processes are balanced as they connect", True),
    "cgroup.hostRoot": Option("cgroup", values.path, "the same"),
    "bpffs": Option("bpffs", values.path, "directory of the pins, on a BPF filesystem", True),
    "bpf.root": Option("bpffs", lambda value: values.path(value) / "k8sdatapath", "the filesystem's root"),
    "listen": Option("listen", values.listen, "where health and metrics are asked for; `none`", True),
    "kubeProxyReplacementHealthzBindAddr": Option("listen", values.listen, "the same"),
    # what is done
    "kubeProxyReplacement": Option("", _must(True, "that is what this agent is"), "true"),
    "nodeAddresses": Option(
        "node_addresses", values.addresses, "where clients dial it; else Node and devices", live=True
    ),
    "nodePort.addresses": Option(
        "node_port_networks", values.networks, "node ports are in these only", live=True
    ),
    "nodePort.range": Option(
        "node_port_range", values.port_range, "ports that are for node ports", live=True
    ),
    "nodePort.bindProtection": Option(
        "protect_node_ports", values.flag, "keep the node's processes from binding them"
    ),
    "nodePort.enableHealthCheck": Option("health_checks", values.flag, "answer healthCheckNodePort"),
    "nodePort.enabled": Option("", _must(True, _ALWAYS), "true"),
    "externalIPs.enabled": Option("", _must(True, _ALWAYS), "true"),
    "hostPort.enabled": Option("", _must(True, _ALWAYS), "true"),
    "sessionAffinity": Option("", _must(True, _ALWAYS), "true"),
    "socketLB.enabled": Option("socket_lb", values.flag, "balance sockets of `cgroup` as they connect"),
    "socketLB.hostNamespaceOnly": Option("pod_sockets", values.unless, "not those of pods"),
    "loadBalancer.algorithm": Option("selection", values.selection, "of services that ask for nothing else"),
    "loadBalancer.acceleration": Option(
        "acceleration", values.one_of(Acceleration), "flows in drivers of uplinks"
    ),
    "socketAcceleration.services": Option(
        "accelerated_services", values.texts, "as in shop/web: connections to them skip the stack"
    ),
    "socketAcceleration.namespaces": Option(
        "accelerated_namespaces", values.texts, "those to all services and local pods of them"
    ),
    "socketAcceleration.networks": Option(
        "accelerated_networks", values.networks, "those to all that is dialled there, or listens"
    ),
    "loadBalancer.mode": Option("", _word("snat", "there is no other way to other nodes yet"), "snat"),
    "loadBalancer.serviceTopology": Option("", _either("hints are always followed"), "true"),
    "serviceNetworks": Option("service_networks", values.networks, "whose addresses are all cluster IPs"),
    "podNetworks": Option("pod_networks", values.networks, "whose addresses are pods' of this node"),
    "routingMode": Option("tunneled", values.either("tunnel", "native"), "how pods elsewhere are reached"),
    "autoDirectNodeRoutes": Option(
        "direct_routes", values.flag, "make routes to pods elsewhere, through their nodes"
    ),
    "tunnelProtocol": Option("tunnel_kind", values.one_of(TunnelKind), "what packets are wrapped in"),
    "tunnelPort": Option("tunnel_port", values.given_port, "UDP port"),
    "tunnelAddresses": Option("tunnel_addresses", values.addresses, "the node's, among those of its pods"),
    "underlayProtocol": Option("tunnel_ipv6", values.either("ipv6", "ipv4"), "between nodes"),
    "MTU": Option("tunnel_mtu", values.given_count, "of the tunnel's device"),
    "bpf.masquerade": Option("masquerade", values.flag, "pods leave the uplinks under the node's addresses"),
    "enableIPv4Masquerade": Option("masquerade_ipv4", values.flag, "for one family; else as the former"),
    "enableIPv6Masquerade": Option("masquerade_ipv6", values.flag, "likewise"),
    "ipv4NativeRoutingCIDR": Option(
        "native_ipv4", values.networks, "destinations that know pods' addresses", live=True
    ),
    "ipv6NativeRoutingCIDR": Option("native_ipv6", values.networks, "likewise", live=True),
    "ipMasqAgent.config.nonMasqueradeCIDRs": Option(
        "not_masqueraded", values.networks, "others that do", live=True
    ),
    "ipMasqAgent.config.masqLinkLocal": Option(
        "masquerade_link_local", values.flag, "whether 169.254.0.0/16 does not", live=True
    ),
    "ipMasqAgent.config.masqLinkLocalIPv6": Option(
        "masquerade_link_local_ipv6", values.flag, "whether fe80::/10 does not", live=True
    ),
    "ipMasqAgent.config.resyncInterval": Option("", lambda _: "", "of no file: nothing", live=True),
    "ipMasqAgent.enabled": Option("masq_agent", values.flag, "read its file, if its config is not here"),
    "masqConfig": Option("masq_config", values.path, "ip-masq-agent's file, read when it changes", True),
    "leftToNetfilter": Option(
        "left_to_netfilter", values.ports, "as in 21/TCP: not masqueraded here", live=True
    ),
    "egress": Option("egress", values.egress, "pods that leave under addresses of their own", live=True),
    "ipv4.enabled": Option("", _either("both families are always served"), "true"),
    "ipv6.enabled": Option("", _either("both families are always served"), "true"),
    "policy": Option("policy", values.flag, "enforce the cluster's network policies on pods of this node"),
    "l7Proxy": Option("l7", values.flag, "with `policy`: hold requests of HTTP to policies, without a proxy"),
    "dnsVisibility": Option(
        "dns_visibility", values.flag, "questions to name servers are flows, also where no policy holds them"
    ),
    "visibilityPods": Option(
        "visible_pods", values.flag, "requests and questions are flows, of pods whose annotation says so"
    ),
    "policyAuditMode": Option(
        "policy_audit", values.flag, "policies only look on: what they deny passes, and is counted", live=True
    ),
    "policyAuditPods": Option(
        "policy_audit_pods", values.flag, "policies only look on at pods whose annotation says so"
    ),
    "policyDenyResponse": Option(
        "policy_answer", values.either("icmp", "none"), "tell pods of this node what is denied", live=True
    ),
    "hostFirewall.enabled": Option("host_firewall", values.flag, "enforce policies for the node itself"),
    "hostFirewall.incoming": Option(
        "host_incoming", values.ports, "ports that no policy closes, as in 22/TCP"
    ),
    "hostFirewall.outgoing": Option("host_outgoing", values.ports, "likewise of others, as in 6443/TCP"),
    "identityAllocationMode": Option(
        "identity_mode", values.one_of(IdentityMode), "who gives label sets their numbers"
    ),
    "etcd.endpoints": Option("etcd", values.texts, "with identityAllocationMode: etcd, its URLs"),
    "etcd.caFile": Option("etcd_ca", values.path, "whom to trust; else whom the machine does"),
    "etcd.certFile": Option("etcd_cert", values.path, "the certificate to show"),
    "etcd.keyFile": Option("etcd_key", values.path, "and its key, if that is in a file of its own"),
    "identityPrewarming": Option(
        "prewarm", values.flag, "give numbers to labels of Deployments and the like before there are pods"
    ),
    "identityGC.interval": Option(
        "collect_every", values.seconds, "between looks for unused numbers; 0: none"
    ),
    "identityGC.heartbeatTimeout": Option("node_timeout", values.seconds, "a silent node is taken for gone"),
    "identityGC.grace": Option("unused_for", values.seconds, "a number that is unused so long is taken back"),
    "identityGC.quarantine": Option("quarantine", values.seconds, "and given to nobody for so long"),
    "hubble.enabled": Option("hubble", values.flag, "tell flows in Hubble's protocol"),
    "hubble.socketPath": Option("hubble_socket", values.path, "where, on this node"),
    "hubble.listenAddress": Option("hubble_listen", values.served, "and for others, as in :4244"),
    "hubble.tls.enabled": Option("hubble_tls", values.flag, "whether others need to trust a certificate"),
    "hubble.tls.certFile": Option("hubble_cert", values.path, "the certificate, read when it changes"),
    "hubble.tls.keyFile": Option("hubble_key", values.path, "and its key"),
    "hubble.tls.clientCAFile": Option("hubble_clients", values.path, "clients need a certificate of these"),
    "hubble.eventBufferCapacity": Option("flows_kept", values.kept, "how many flows are kept"),
    "hubble.metrics.enabled": Option("hubble_metrics", values.metrics, "metrics of flows, Hubble's"),
    "bpf.monitorAggregation": Option(
        "aggregation", values.one_of(Aggregation), "medium: some packets of each connection; none: all"
    ),
    "writeEvents": Option("write_events", values.flag, "write Events about objects with errors"),
    # how much
    "capacity.services": Option("services", values.count, "frontends", live=True),
    "capacity.backends": Option("backends", values.count, "endpoints in services", live=True),
    "capacity.slots": Option("slots", values.count, "places in backend sets", live=True),
    "capacity.flows": Option("flows", values.count, "directions of flows", live=True),
    "capacity.clients": Option("clients", values.count, "clients with session affinity", live=True),
    "capacity.pods": Option("pods", values.count, "addresses of local pods", live=True),
    "capacity.policies": Option("policies", values.count, "different ones of local pods", live=True),
    "capacity.rules": Option("rules", values.count, "rules of these policies", live=True),
    "capacity.parties": Option("parties", values.count, "addresses of the cluster's pods", live=True),
    "capacity.networks": Option("networks", values.count, "networks that policies name", live=True),
    "capacity.talks": Option("talks", values.count, "connections that policies let begin", live=True),
    "bpf.lbServiceMapMax": Option("services", values.count, "frontends", live=True),
    "bpf.lbBackendMapMax": Option("backends", values.count, "endpoints in services", live=True),
    "bpf.policyMapMax": Option("rules", values.count, "rules of policies", live=True),
    "bpf.ctTcpMax": Option("flows", values.count, "directions of flows", live=True),
    # what is told
    "log.level": Option("log_level", values.log_level, "debug, info, warning or error", True, live=True),
    "log.format": Option("log_format", values.one_of(LogFormat), "json or text", True, live=True),
    "debug.enabled": Option("log_level", _debug, "true is log level debug", live=True),
}

_CILIUM: Final = """
affinity agent aksbyocni alibabacloud annotateK8sNode annotations apiRateLimit auth authentication
azure bandwidthManager bgp bgpControlPlane bpfClockProbe ca certgen ciliumEndpointSlice
cleanBpfState cleanState cluster clusterHealthPort clustermesh cni commonLabels conntrackGCInterval
conntrackGCMaxInterval containerRuntime crdWaitTimeout customCalls daemon dashboards
directRoutingSkipUnreachable disableEndpointCRD dnsPolicy dnsProxy egressGateway enableCiliumEndpointSlice
enableInternalTrafficPolicy enableK8sEndpointSlice enableLBIPAM enableXTSocketFallback encryption
endpointHealthChecking endpointRoutes eni envoy envoyConfig etcd extraArgs extraConfig extraContainers
extraEnv extraHostPathMounts extraVolumeMounts extraVolumes forceDeviceDetection gatewayAPI gke
healthChecking healthPort hubble identityChangeGracePeriod image
imagePullSecrets ingressController initResources installNoConntrackIptablesRules ipam
iptablesRandomFully k8sClientRateLimit k8sNetworkPolicy
keepDeprecatedLabels keepDeprecatedProbes l2announcements l2NeighDiscovery l2podAnnouncements
livenessProbe localRedirectPolicy logSystemLoad maglev monitor nodeinit nodeSelector nodeSelectorLabels
operator pmtuDiscovery podAnnotations podLabels podSecurityContext policyEnforcementMode
preflight priorityClassName prometheus proxy rbac readinessProbe remoteNodeIdentity resourceQuotas resources
rollOutCiliumPods sctp securityContext serviceAccounts serviceNoBackendResponse sleepAfterInit startupProbe
svcSourceRangeCheck synchronizeK8sNodes sysctlfix terminationGracePeriodSeconds tls tolerations
updateStrategy upgradeCompatibility vtep waitForKubeProxy wellKnownIdentities
"""

IGNORED: Final = frozenset(_CILIUM.split()) | {name.partition(".")[0] for name in OPTIONS if "." in name}
"""Sections and values of Cilium's chart that may say what has nothing to do with what this agent does."""
