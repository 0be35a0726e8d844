"""An agent's part that follows network policies: the loop, where numbers come from, and where policies do."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.agent.policy_events import ToldPolicies
from k8sdatapath.agent.values import IdentityMode
from k8sdatapath.component import ObjectKey, RecordStore
from k8sdatapath.datapath.identity_policy import IdentityPolicy
from k8sdatapath.errors import ConfigError
from k8sdatapath.hubble import AgentEvents
from k8sdatapath.identity import Collecting, Collector, MemoryStore, StoreAllocator
from k8sdatapath.identity.etcd import EtcdStore
from k8sdatapath.kube.events import ObjectSource
from k8sdatapath.kube.policy_watch import PolicyWatch
from k8sdatapath.kube.replay import Recorder, Replay
from k8sdatapath.kube.static_source import StaticSource
from k8sdatapath.kube.store import KubeStore
from k8sdatapath.model.identity import Identity, well_known
from k8sdatapath.node import IdentifiedPods
from k8sdatapath.reconcile import PolicyReconciler, Status

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

__all__ = ["follow_policies"]


def follow_policies(
    config: AgentConfig,
    client: ApiClient | None,
    policy: IdentityPolicy,
    pods: IdentifiedPods,
    own: ExitStack,
    tell: Callable[[ObjectKey, Status], object],
    events: AgentEvents | None,
) -> PolicyReconciler:
    """Keep a node's policies as the cluster has them, until ``own`` is closed.

    :param client: of the API server; None: objects are in files, or were recorded.
    :param tell: is told what is wrong with objects.
    :param events: are told what is done; None: nobody asks.
    """
    store = _store(config, client)

    def renumbered(old: Identity, new: Identity) -> None:
        reconciler.renumber(old, new)

    alone = config.identity_mode is IdentityMode.MEMORY
    identities = StoreAllocator(
        store, config.node_name, fixed=well_known(), timing=config.timing, renumbered=renumbered
    )
    source = _source(config, client)
    told = None if events is None else ToldPolicies(policy, events.add)
    reconciler = PolicyReconciler(
        source,
        config.node_name,
        policy if told is None else told,
        identities,
        on_pods=pods.know if told is None else told.to_pods(pods.know),
        on_node=pods.know_host if config.host_firewall else None,
        alone=alone,
        prewarm=config.prewarm,
        audit_pods=config.policy_audit_pods,
        visible_pods=config.telling and config.visible_pods,
        names=True,
        requests=config.l7,
        on_status=tell,
    )
    own.enter_context(reconciler)
    if config.collect_every:
        collector = Collector(store, timing=config.timing)
        own.enter_context(Collecting(collector, config.node_name, every=config.collect_every))
    if isinstance(store, KubeStore | EtcdStore):
        own.enter_context(store)  # closed first, so that nobody waits for it
    return reconciler.start()


def _source(config: AgentConfig, client: ApiClient | None) -> ObjectSource:
    if client is None:
        if config.replay is not None:
            return Replay(_beside(config.replay))
        return StaticSource(*config.sources, raw=True)
    watch = PolicyWatch(client, templates=config.prewarm)
    return watch if config.record is None else Recorder(watch, _beside(config.record))


def _beside(recording: Path) -> Path:
    """What policies are made of is recorded in a file of its own, since more is known of each object."""
    return recording.with_name(f"{recording.stem}.policies{recording.suffix}")


def _store(config: AgentConfig, client: ApiClient | None) -> RecordStore:
    if config.identity_mode is IdentityMode.MEMORY:
        return MemoryStore()
    if client is not None and config.identity_mode is IdentityMode.CRD:
        return KubeStore(client)
    return EtcdStore(config.etcd, tls=_tls(config))


def _tls(config: AgentConfig) -> ssl.SSLContext | None:
    if not any(each.startswith("https:") for each in config.etcd):
        return None
    try:
        context = ssl.create_default_context(cafile=config.etcd_ca)
        if config.etcd_cert is not None:
            context.load_cert_chain(config.etcd_cert, config.etcd_key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(each) for each in (config.etcd_ca, config.etcd_cert, config.etcd_key) if each)
        raise ConfigError(files, "etcd.caFile, etcd.certFile, etcd.keyFile", str(error)) from None
    return context
