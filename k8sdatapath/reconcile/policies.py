"""The loop that keeps policies in the kernel as they are wanted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Protocol, Self, TypeAlias

from attrs import evolve

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ClosedError, DatapathError, ManifestError
from k8sdatapath.identity import StoreAllocator
from k8sdatapath.kube.events import ObjectSource
from k8sdatapath.kube.policy.translator import Origin, PolicyDelta, PolicyTranslator
from k8sdatapath.model.identity import Identity, Reserved
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import Workload
from k8sdatapath.reconcile.numbers import Numbers
from k8sdatapath.reconcile.policy_status import InForce, PolicyStatus
from k8sdatapath.reconcile.reconciler import Retry
from k8sdatapath.reconcile.status import Status

__all__ = ["KnownPods", "Policies", "PolicyReconciler"]

_log = logging.getLogger("k8sdatapath.reconcile")

_TICK = 0.25
"""Seconds after which the loop looks for what is to be tried again."""
_GRACE = 5.0
"""Seconds for which a pod elsewhere that has other labels counts as who it was, until its number is told."""

KnownPods: TypeAlias = Mapping[str, tuple[Workload, int]]
"""Pods of this node by name: what policies know of them, and the number of their labels."""


class Policies(InForce, Protocol):
    """Where policies go, such as ``node.policy``."""

    def apply(self, policies: Iterable[Policy]) -> Any:
        """These and no others."""
        ...

    def upsert(self, *policies: Policy) -> Any:
        """Add or replace."""
        ...

    def remove(self, *names: str) -> Any:
        """Take away."""
        ...

    def learn(self, workloads: Mapping[Workload, int]) -> None:
        """Know workloads by their numbers."""
        ...

    def forget(self, *names: str) -> None:
        """They are gone."""
        ...


class PolicyReconciler(PolicyStatus):
    """Keeps policies in the kernel as objects want them::

        PolicyReconciler(watch, "n1", node.policy, identities, on_pods=pods.know).start()

    Nothing is written before the source is synced and the store was heard once. Then, at each change: who is
    who elsewhere, policies, and the node's own pods, which are told to ``on_pods`` only when all that selects
    them is in force. Whoever has no number yet is in no selector, and a pod of this node waits for its own.
    What fails is tried again.

    :param source: of raw objects, see ``policy_resources``; is closed with it.
    :param node: the name of the node whose pods are its own.
    :param identities: is closed with it, too.
    :param on_pods: told of all pods of this node that are known, whenever that changes. If it raises, it is
        called again later.
    :param on_node: told who the node itself is, likewise; without it policies for nodes are refused.
    :param alone: nobody else gives numbers: those for pods of other nodes are given here too.
    :param prewarm: labels of what makes pods, such as Deployments, get numbers before there are pods. Of the
        nodes that the source tells of, one sees to each; with ``alone``, this one to all.
    :param audit_pods: policies only look on at pods whose annotation says so; else it counts for nothing.
    :param visible_pods: pods of this node have what their annotations say told of them; else these count for
        nothing.
    :param names: somebody tells ``policies`` which addresses DNS names have (``learn_name``); otherwise
        policies by name are refused.
    :param requests: ``policies`` can hold requests to them; otherwise policies that ask for that are refused.
    :param on_status: told of an object that has an error or names what is not there, and when that is over.
    """

    _policies: Policies

    def __init__(
        self,
        source: ObjectSource,
        node: str,
        policies: Policies,
        identities: StoreAllocator,
        *,
        on_pods: Callable[[KnownPods], object],
        on_node: Callable[[Workload], object] | None = None,
        alone: bool = False,
        prewarm: bool = False,
        audit_pods: bool = False,
        visible_pods: bool = False,
        names: bool = False,
        requests: bool = False,
        retry: Retry | None = None,
        on_status: Callable[[ObjectKey, Status], object] = lambda key, status: None,
    ) -> None:
        self.error: BaseException | None = None
        """Why it has ended by itself, if it has."""
        self._source, self._policies, self._on_pods, self._on_node = source, policies, on_pods, on_node
        self._node, self._alone, self._retry = node, alone, retry or Retry()
        self._prewarm, self._audit_pods, self._visible_pods = prewarm, audit_pods, visible_pods
        self._templates: dict[str, Workload] = {}
        self._translator = PolicyTranslator(node, names=names, requests=requests, nodes=on_node is not None)
        self._on_status = on_status
        self._changed = threading.Condition()  # guards the translator, these four, and what it has told
        self._news = self._told = self._closed = self._synced = False
        self._numbers = Numbers(identities, self._wake, alone=alone)
        self._wanted: dict[str, Policy] = {}
        self._workloads: dict[str, Workload] = {}
        self._local: set[str] = set()
        self._due: dict[str, float] = {}  # workloads elsewhere that are not learned as they are; since when
        self._learned: dict[str, tuple[Workload, int]] = {}
        self._gone: set[str] = set()
        self._stale = True  # policies are not as wanted
        self._pods: dict[str, tuple[Workload, int]] | None = None  # as last told
        self._host: Workload | None = None  # the node itself
        self._told_host: Workload | None = None
        self._origins: dict[ObjectKey, Origin] = {}
        self._missing: dict[ObjectKey, tuple[str, ...]] = {}
        self._errors: dict[ObjectKey, ManifestError] = {}
        self._reasons: dict[ObjectKey, str] = {}  # as last told to on_status
        self._failures: dict[str, Exception] = {}
        self._tries, self._again = 0, 0.0
        self._threads = [
            threading.Thread(target=self._read, name="kd-policy-source", daemon=True),
            threading.Thread(target=self._run, name="kd-policies", daemon=True),
        ]

    def start(self) -> Self:
        """Reconcile in threads of its own, until :meth:`close`.

        :raises ClosedError: it was closed, or runs already.
        """
        if self._closed or self._threads[0].ident is not None:
            raise ClosedError("a reconciler runs once")
        for thread in self._threads:
            thread.start()
        return self

    def close(self) -> None:
        """Stop, and close the source and the allocator. What is in the kernel stays."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._source.close()
        self._numbers.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def running(self) -> bool:
        """Whether it is at work."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def synced(self) -> bool:
        """Whether all was told once, and was put in force but for what failed or waits for a number."""
        return self._synced

    @property
    def _over(self) -> bool:
        return self._closed or self.error is not None

    def renumber(self, old: Identity, new: Identity) -> None:
        """For ``renumbered`` of the allocator."""
        self._numbers.renumber(old, new)

    # -- the thread that reads --

    def _read(self) -> None:
        try:
            for batch in self._source.batches(_TICK):
                with self._changed:
                    self._translator.take(batch.events)
                    if batch.events or batch.synced != self._told:
                        self._told, self._news = batch.synced, True
                        self._changed.notify_all()
        except Exception as error:
            self._end(error)

    def _wake(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def _end(self, error: Exception) -> None:
        if not self._closed:
            _log.exception("policies are not followed any more")
            with self._changed:
                self.error = error
                self._changed.notify_all()

    # -- the loop --

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._news or self._closed, _TICK)
                    if self._closed:
                        return
                    news, self._news = self._news, False
                    told = self._told
                    delta = self._translator.delta() if news else PolicyDelta()
                    self._take(delta)
                again = bool(self._failures) and time.monotonic() >= self._again
                if told and self._numbers.ready and (news or self._due or again):
                    self._step()
                if news or again:
                    self._tell_status()
        except Exception as error:
            self._end(error)

    def _take(self, delta: PolicyDelta) -> None:
        for policy in delta.policies:
            self._wanted[policy.name] = policy
        for name in delta.removed:
            self._wanted.pop(name, None)
        self._stale = self._stale or bool(delta.policies or delta.removed)
        now = time.monotonic()
        for each in delta.workloads:
            if " " in each.name:  # a template, which is nobody yet
                self._templates[each.name] = each
                continue
            if each.name == self._node:  # it knows its addresses itself
                self._host = each
                continue
            local = each.name in delta.local
            if each.audit and not self._audit_pods:
                each = evolve(each, audit=False)
                if local:
                    _log.warning("policies are enforced for %s: its annotation counts for nothing", each.name)
            if each.visible and not (local and self._visible_pods):
                each = evolve(each, visible=())
            self._workloads[each.name] = each
            self._gone.discard(each.name)
            if local:
                self._local.add(each.name)
                self._due.pop(each.name, None)
            else:
                self._local.discard(each.name)
                self._due[each.name] = now
        for name in delta.gone:
            self._templates.pop(name, None)
            if self._workloads.pop(name, None) is not None:
                self._local.discard(name)
                self._due.pop(name, None)
                self._gone.add(name)
        for key, origin in delta.origins.items():
            if origin is None:
                self._origins.pop(key, None)
            else:
                self._origins[key] = origin
        for key, error in delta.errors.items():
            self._tell(key, error)
        for key, names in delta.missing.items():
            self._missing.pop(key, None)
            if names:
                self._missing[key] = names
                _log.warning("%s %s/%s names what is not there: %s", *key, ", ".join(names))

    def _step(self) -> None:
        """Bring the kernel closer to what is wanted: peers, policies, then pods, so that none is open."""
        concerned = self._workloads if self._alone else self._local
        wanted = {self._workloads[name].labels for name in concerned if self._is_pod(name)}
        self._numbers.want(wanted | (self._forthcoming() if self._prewarm else set()))
        failures: dict[str, Exception] = {}
        self._attempt("peers", self._follow_peers, failures)
        if self._stale:
            self._enforce(failures)
        self._attempt("pods", lambda: self._follow_pods(failures), failures)
        self._attempt("node", lambda: self._follow_host(failures), failures)
        for name, error in failures.items():
            if str(error) != str(self._failures.get(name, "")):
                _log.error("not in force as wanted: %s: %s", name, error)
        self._tries = self._tries + 1 if failures else 0
        self._again = time.monotonic() + (self._retry.after(self._tries) if failures else 0.0)
        self._failures = failures
        self._synced = True

    def _forthcoming(self) -> set[tuple[str, ...]]:
        """Labels of pods to come that this node, of all, has to see to."""
        others = [] if self._alone else [name for name in self._workloads if not self._is_pod(name)]

        def weight(node: str, template: str) -> bytes:
            return blake2b(f"{node} {template}".encode(), digest_size=8).digest()

        return {
            each.labels
            for name, each in self._templates.items()
            if all(weight(self._node, name) <= weight(other, name) for other in others)
        }

    def _is_pod(self, name: str) -> bool:
        return self._workloads[name].is_pod

    def _attempt(self, name: str, action: Callable[[], None], failures: dict[str, Exception]) -> None:
        try:
            action()
        except DatapathError as error:
            failures[name] = error

    def _follow_peers(self) -> None:
        """Who is new comes first: of an address that has changed hands the last is believed."""
        if self._numbers.moved():
            self._due |= {name: time.monotonic() for name in self._learned if name in self._workloads}
        learned, done = dict[str, tuple[Workload, int]](), set[str]()
        for name, since in self._due.items():
            wanted = self._workloads[name]
            known = self._learned.get(name)
            number = self._number(wanted, known)
            if number is not None:
                done.add(name)
                learned[name] = wanted, number
            elif known is None or time.monotonic() - since >= _GRACE:
                learned[name] = evolve(wanted, labels=_NOBODY, ports=()), Reserved.INIT
            else:
                learned[name] = evolve(wanted, labels=known[0].labels, ports=known[0].ports), known[1]
        news = {name: each for name, each in learned.items() if self._learned.get(name) != each}
        if news:
            self._policies.learn(dict(news.values()))
            self._learned.update(news)
        for name in done:
            del self._due[name]
        if gone := (self._gone | self._local) & self._learned.keys() - self._due.keys():
            self._policies.forget(*(gone - self._local))
            for name in gone:
                del self._learned[name]
        self._gone.clear()

    def _number(self, wanted: Workload, known: tuple[Workload, int] | None) -> int | None:
        if not wanted.is_pod:
            return Reserved.REMOTE_NODE
        found = self._numbers.get(wanted.labels)
        if found is None and known is not None and known[0].labels == wanted.labels:
            return known[1]  # it stays what it was
        return found

    def _enforce(self, failures: dict[str, Exception]) -> None:
        """All at once; if that fails, one by one, to find out whose fault it is."""
        try:
            self._policies.apply(self._wanted.values())
        except DatapathError:
            there = dict(self._policies.policies)
            self._policies.remove(*(name for name in there if name not in self._wanted))
            for name, policy in self._wanted.items():
                if there.get(name) != policy:
                    try:
                        self._policies.upsert(policy)
                    except DatapathError as error:
                        failures[name] = error
        self._stale = any(name in self._wanted for name in failures)

    def _follow_pods(self, failures: Mapping[str, Exception]) -> None:
        """Those for whom a policy is not in force stay as they are, which at first is cut off."""
        before = self._pods or {}
        open_for = [self._wanted[name].subject for name in failures if name in self._wanted]
        after: dict[str, tuple[Workload, int]] = {}
        for name in self._local:
            wanted = self._workloads[name]
            number = self._number(wanted, before.get(name))
            if number is None or any(each.matches(wanted.labels) for each in open_for):
                if name in before:
                    after[name] = before[name]
            else:
                after[name] = wanted, number
        if after != self._pods or "pods" in self._failures:
            self._on_pods(after)
            self._pods = after

    @property
    def _host_waits(self) -> bool:
        return self._on_node is not None and self._host != self._told_host

    def _follow_host(self, failures: Mapping[str, Exception]) -> None:
        """The node stays as it is, which at first is open, while a policy for it is not in force."""
        host = self._host
        open_for = [self._wanted[name].subject for name in failures if name in self._wanted]
        if host is None or self._on_node is None or any(each.matches(host.labels) for each in open_for):
            return
        if self._host_waits:
            self._on_node(host)
            self._told_host = host

    def __repr__(self) -> str:
        return (
            f"<PolicyReconciler {self._node}, {len(self._wanted)} policies, {len(self._workloads)} workloads>"
        )


_NOBODY = ("reserved:init",)
"""The labels of who has no number yet: no selector of pods has them, nor is it of the world."""
