"""What an agent is told: by a file, and by flags, which are stronger."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from k8sdatapath.agent.options import IGNORED, OPTIONS
from k8sdatapath.agent.values import (
    UNSAID,
    Acceleration,
    Aggregation,
    IdentityMode,
    Listen,
    LogFormat,
    TunnelKind,
)
from k8sdatapath.errors import ConfigError, ManifestError, near_misses
from k8sdatapath.identity import Timing
from k8sdatapath.kube.documents import parse_yaml
from k8sdatapath.kube.egress import EgressRule
from k8sdatapath.model import IPAddress, IPNetwork, Masquerade, Protocol, Selection
from k8sdatapath.model.address import shown
from k8sdatapath.model.host_firewall import HostFirewall
from k8sdatapath.node import Capacity, Tunnel
from k8sdatapath.pins import BPFFS

__all__ = ["AgentConfig"]

_ALL: Mapping[int, list[IPNetwork]] = {
    4: [IPv4Network("0.0.0.0/0")],
    # but for those that stand for IPv4 addresses, which are looked up in the same table
    6: [*IPv6Network("::/0").address_exclude(IPv6Network("::/16"))],
}
_LARGEST = 1 << 20
_MASQ_CONFIG = Path("/etc/config/ip-masq-agent")
_TYPO = 0.88
"""How much a word must be like a known one to be a mistake rather than a word of somebody else's."""


@frozen(kw_only=True)
class AgentConfig:
    """All that an agent touches, and how it does its work. What the fields mean is told by their options.

    :ivar ignored: what was said that means nothing to this agent, one sentence each.
    """

    node_name: str = field(factory=socket.gethostname)
    kubeconfig: Path | None = None
    api_host: str = ""
    api_port: int = 0
    sources: tuple[Path, ...] = ()
    record: Path | None = None
    replay: Path | None = None
    netns: str = ""
    uplinks: tuple[str, ...] = ()
    pod_devices: tuple[str, ...] = ()
    cni_socket: Path | None = None
    cgroup: Path | None = None
    bpffs: Path = BPFFS / "k8sdatapath"
    listen: Listen | None = field(factory=lambda: Listen("127.0.0.1", 10256))
    node_addresses: tuple[IPAddress, ...] = ()
    node_port_networks: tuple[IPNetwork, ...] = ()
    node_port_range: tuple[int, int] = (30000, 32767)
    protect_node_ports: bool = True
    health_checks: bool = True
    write_events: bool = False
    socket_lb: bool = True
    pod_sockets: bool = True
    selection: Selection = Selection.RANDOM
    acceleration: Acceleration = Acceleration.DISABLED
    accelerated_services: tuple[str, ...] = ()
    accelerated_namespaces: tuple[str, ...] = ()
    accelerated_networks: tuple[IPNetwork, ...] = ()
    masquerade: bool = False
    masquerade_ipv4: bool | None = None
    masquerade_ipv6: bool | None = None
    native_ipv4: tuple[IPNetwork, ...] = ()
    native_ipv6: tuple[IPNetwork, ...] = ()
    not_masqueraded: tuple[IPNetwork, ...] = ()
    masquerade_link_local: bool = False
    masquerade_link_local_ipv6: bool = False
    masq_agent: bool = False
    masq_config: Path | None = None
    left_to_netfilter: tuple[tuple[Protocol, int], ...] = ()
    egress: tuple[EgressRule, ...] = ()
    service_networks: tuple[IPNetwork, ...] = ()
    pod_networks: tuple[IPNetwork, ...] = ()
    direct_routes: bool = False
    tunneled: bool = False
    tunnel_kind: TunnelKind = TunnelKind.VXLAN
    tunnel_port: int = 0
    tunnel_addresses: tuple[IPAddress, ...] = ()
    tunnel_ipv6: bool = False
    tunnel_mtu: int = 0
    policy: bool = False
    l7: bool = False
    dns_visibility: bool = False
    visible_pods: bool = True
    policy_audit: bool = False
    policy_audit_pods: bool = False
    policy_answer: bool = False
    host_firewall: bool = False
    host_incoming: tuple[tuple[Protocol, int], ...] = HostFirewall().incoming
    host_outgoing: tuple[tuple[Protocol, int], ...] = HostFirewall().outgoing
    identity_mode: IdentityMode = IdentityMode.CRD
    etcd: tuple[str, ...] = ()
    etcd_ca: Path | None = None
    etcd_cert: Path | None = None
    etcd_key: Path | None = None
    prewarm: bool = False
    collect_every: float = 60.0
    node_timeout: float = Timing().timeout
    unused_for: float = Timing().grace
    quarantine: float = Timing().quarantine
    hubble: bool = False
    hubble_socket: Path = Path("/run/k8sdatapath/hubble.sock")
    hubble_listen: str = ""
    hubble_tls: bool = False
    hubble_cert: Path | None = None
    hubble_key: Path | None = None
    hubble_clients: Path | None = None
    hubble_metrics: tuple[str, ...] = ()
    aggregation: Aggregation = Aggregation.MEDIUM
    flows_kept: int = 65536
    services: int = Capacity().services
    backends: int = Capacity().backends
    slots: int = Capacity().slots
    flows: int = Capacity().flows
    clients: int = Capacity().clients
    pods: int = Capacity().pods
    policies: int = Capacity().policies
    rules: int = Capacity().rules
    parties: int = Capacity().parties
    networks: int = Capacity().networks
    talks: int = Capacity().talks
    log_level: str = "info"
    log_format: LogFormat = LogFormat.JSON
    ignored: tuple[str, ...] = field(default=(), eq=False)

    @classmethod
    def load(cls, path: Path | None = None, flags: Mapping[str, Any] | None = None) -> AgentConfig:
        """Read a file, and what flags say otherwise.

        :param path: YAML, in the words of ``docs/reference/agent.md``. A Helm values file of Cilium will
            do as far as both can the same.
        :param flags: values by the file's words, as in ``{"nodeName": "n1"}``.
        :raises ConfigError: what cannot be or is not understood, and where it stands.
        """
        values: dict[str, Any] = {}
        ignored: list[str] = []
        if path is not None:
            _take(str(path), _read(path), "", values, ignored)
        for name, value in (flags or {}).items():
            values[OPTIONS[name].field] = _converted("flag", name, value)
        config = cls(**values, ignored=tuple(ignored))
        config._check()
        return config

    @property
    def capacity(self) -> Capacity:
        """How much the node's tables hold."""
        return Capacity(
            services=self.services,
            backends=self.backends,
            slots=self.slots,
            flows=self.flows,
            clients=self.clients,
            pods=self.pods,
            policies=self.policies,
            rules=self.rules,
            parties=self.parties,
            networks=self.networks,
            talks=self.talks,
        )

    @property
    def guard(self) -> HostFirewall | None:
        """What the node itself is guarded by, if it is."""
        if not self.host_firewall:
            return None
        return HostFirewall(incoming=self.host_incoming, outgoing=self.host_outgoing)

    @property
    def telling(self) -> bool:
        """Whether anybody is told of flows."""
        return bool(self.hubble or self.hubble_metrics)

    @property
    def accelerating(self) -> bool:
        """Whether anything is to skip the stack."""
        return bool(self.accelerated_services or self.accelerated_namespaces or self.accelerated_networks)

    @property
    def masquerading(self) -> Masquerade | None:
        """What pods leave under; None: their own addresses. Of the cluster's nodes nothing is known here."""
        families = {4: self.masquerade_ipv4, 6: self.masquerade_ipv6}
        done = {version: self.masquerade if said is None else said for version, said in families.items()}
        if not any(done.values()):
            return None
        left = [each for version in done if not done[version] for each in _ALL[version]]
        exclude = (*left, *self.native_ipv4, *self.native_ipv6, *self.not_masqueraded)
        links = {4: self.masquerade_link_local, 6: self.masquerade_link_local_ipv6}
        return Masquerade(
            devices=self.uplinks,
            exclude=exclude,
            link_local=[version for version, said in links.items() if said],
            netfilter=self.left_to_netfilter,
        )

    @property
    def masq_file(self) -> Path | None:
        """Where ip-masq-agent's configuration is, which may change at any time; None: what it would say is
        said here, or nobody asks for it.
        """
        inline = self.not_masqueraded or self.masquerade_link_local or self.masquerade_link_local_ipv6
        return self.masq_config or (_MASQ_CONFIG if self.masq_agent and not inline else None)

    @property
    def timing(self) -> Timing:
        """How long what takes until numbers are given to others."""
        beat = Timing().beat / Timing().timeout * self.node_timeout
        return Timing(beat=beat, timeout=self.node_timeout, grace=self.unused_for, quarantine=self.quarantine)

    @property
    def tunnel(self) -> Tunnel | None:
        """How packets to pods of other nodes travel; None: as the node's routes say."""
        if not self.tunneled:
            return None
        return Tunnel(
            kind=self.tunnel_kind.value,
            addresses=self.tunnel_addresses,
            port=self.tunnel_port,
            ipv6=self.tunnel_ipv6,
            mtu=self.tunnel_mtu,
        )

    @property
    def pins(self) -> Path:
        """The directory of its pins: ``bpffs``, or one in it if that is where the filesystem is mounted.

        The root of a BPF filesystem is open to all users as it is mounted; a pin directory must not be.
        """
        return self.bpffs / "k8sdatapath" if self.bpffs.is_mount() else self.bpffs

    def differences(self, other: AgentConfig) -> tuple[str, ...]:
        """The words for what another configuration says otherwise."""
        names: dict[str, str] = {}
        for word, option in OPTIONS.items():
            names.setdefault(option.field, word)
        del names[""]
        return tuple(word for name, word in names.items() if getattr(self, name) != getattr(other, name))

    def taking(self, words: Iterable[str], other: AgentConfig) -> AgentConfig:
        """The same, but for some words as another configuration has them."""
        return evolve(
            self, **{name: getattr(other, name) for name in (OPTIONS[word].field for word in words)}
        )

    def _check(self) -> None:
        api = {"kubeconfig": self.kubeconfig, "k8sServiceHost": self.api_host}
        sources = {"source": self.sources, "replay": self.replay, **api}
        if sum(1 for given in sources.values() if given) > 1:
            told = ", ".join(name for name, given in sources.items() if given)
            raise ConfigError("", told, "objects come from one of these only")
        if self.cni_socket is not None and self.pod_devices:
            raise ConfigError(
                "", "podDevicePattern", "with cniSocket the plugin says which devices are pods'"
            )
        if self.acceleration is not Acceleration.DISABLED and not self.uplinks:
            raise ConfigError("", "loadBalancer.acceleration", "there are no uplinks that it could be for")
        if self.accelerating and self.cgroup is None:
            raise ConfigError("", "socketAcceleration", "whose sockets are meant? Needs cgroup")
        if (wanted := self.masquerading) is not None:
            if not self.uplinks:
                raise ConfigError("", "bpf.masquerade", "there are no uplinks that pods could leave by")
            for version, said in ((4, self.native_ipv4), (6, self.native_ipv6)):
                known = self.tunneled or said or self.masq_file
                if not known and _ALL[version][0] not in wanted.exclude:
                    word = f"ipv{version}NativeRoutingCIDR"
                    raise ConfigError(
                        "", word, "needed to masquerade: where pods are known by their addresses"
                    )
        if self.masq_config is not None:
            if wanted is None:
                raise ConfigError("", "masqConfig", "nothing is masqueraded: see bpf.masquerade")
            if self.masq_file is not None and self.not_masqueraded:
                raise ConfigError("", "masqConfig, ipMasqAgent.config", "one of these only")
        if self.egress and wanted is None:
            raise ConfigError("", "egress", "nothing is masqueraded: see bpf.masquerade")
        if self.policy:
            self._check_policy()
        elif self.host_firewall:
            raise ConfigError("", "hostFirewall.enabled", "needs policy: true")
        if self.dns_visibility and not (self.policy and self.telling):
            raise ConfigError("", "dnsVisibility", "needs policy, and hubble.enabled or metrics")
        if (self.hubble_cert is None) is not (self.hubble_key is None):
            raise ConfigError("", "hubble.tls", "a certificate and its key go together")
        if (self.hubble_tls or self.hubble_clients is not None) and self.hubble_cert is None:
            raise ConfigError("", "hubble.tls.certFile", "needed for TLS")
        if self.tunneled and self.direct_routes:
            raise ConfigError(
                "", "autoDirectNodeRoutes", "with routingMode: tunnel there is a tunnel instead"
            )
        if self.tunneled and not self.tunnel_addresses:
            raise ConfigError("", "tunnelAddresses", "needed with routingMode: tunnel, one of each family")

    def _check_policy(self) -> None:
        if self.l7 and self.cgroup is None:
            raise ConfigError("", "l7Proxy", "whose sockets are meant? Needs cgroup")
        mode = self.identity_mode
        if mode is IdentityMode.CRD and (self.sources or self.replay is not None):
            why = "cannot be crd: objects come from no API server, so numbers cannot (memory, etcd)"
            raise ConfigError("", "identityAllocationMode", why)
        if mode is IdentityMode.MEMORY and self.tunneled:
            why = "through a tunnel nodes tell each other numbers, so all must have the same"
            raise ConfigError("", "identityAllocationMode", f"cannot be memory: {why}")
        if mode in (IdentityMode.ETCD, IdentityMode.KVSTORE) and not self.etcd:
            raise ConfigError("", "etcd.endpoints", f"needed with identityAllocationMode: {mode.value}")
        if self.etcd_key is not None and self.etcd_cert is None:
            raise ConfigError("", "etcd.certFile", "needed with etcd.keyFile")
        if not self.node_timeout:
            raise ConfigError("", "identityGC.heartbeatTimeout", "cannot be 0: every node would be gone")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(str(path), "", str(error.strerror)) from None
    if len(data) > _LARGEST:
        raise ConfigError(str(path), "", f"larger than {_LARGEST} bytes")
    try:
        documents = [each for each in parse_yaml(data.decode(), str(path)) if each is not None]
    except ManifestError as error:
        raise ConfigError(error.where, error.path, error.reason) from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "this is not UTF-8 text") from None
    if len(documents) > 1 or not all(isinstance(each, dict) for each in documents):
        raise ConfigError(str(path), "", "one mapping is expected")
    return documents[0] if documents else {}


def _take(
    where: str, given: Mapping[str, Any], prefix: str, values: dict[str, Any], ignored: list[str]
) -> None:
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and any(option.startswith(f"{name}.") for option in OPTIONS):
            _take(where, value, f"{name}.", values, ignored)
        elif name in OPTIONS:
            if value is not None and value != "":  # as Helm has it: neither is to say anything
                _put(where, name, _converted(where, name, value), values, ignored)
        elif value is not None and any(option.startswith(f"{name}.") for option in OPTIONS):
            raise ConfigError(where, name, f"{shown(value)} is not a mapping; {_words_of(name)}")
        elif name.partition(".")[0] in IGNORED and not get_close_matches(name, OPTIONS, cutoff=_TYPO):
            ignored.append(f"{where}: {name} means nothing to this agent")
        else:
            raise ConfigError(where, name, f"unknown; {near_misses(name, OPTIONS)}")


def _words_of(section: str) -> str:
    return "there is " + ", ".join(name for name in OPTIONS if name.startswith(f"{section}."))


def _put(where: str, name: str, value: Any, values: dict[str, Any], ignored: list[str]) -> None:
    option = OPTIONS[name]
    if value is UNSAID:
        return
    if not option.field:
        ignored.extend([f"{where}: {name}: {value}"] if value else [])
    elif values.setdefault(option.field, value) != value:
        raise ConfigError(where, name, f"{option.field.replace('_', ' ')} is said otherwise elsewhere")


def _converted(where: str, name: str, value: Any) -> Any:
    try:
        return OPTIONS[name].convert(value)
    except ValueError as error:
        raise ConfigError(where, name, str(error)) from None


def flag_names() -> Iterable[str]:
    """The words of the file that have a flag as well."""
    return (name for name, option in OPTIONS.items() if option.flag)
