"""How far the policies of a cluster are on a node, as users ask for it."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Protocol

from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ClosedError, ManifestError, NotProgrammedError
from k8sdatapath.kube.policy.translator import Origin
from k8sdatapath.model.policy import Policy
from k8sdatapath.model.workload import Workload
from k8sdatapath.reconcile.numbers import Numbers
from k8sdatapath.reconcile.status import State, Status
from k8sdatapath.resource import Resource

__all__ = ["InForce", "PolicyStatus"]

_log = logging.getLogger("k8sdatapath.reconcile")


class InForce(Protocol):
    """Where policies are, such as ``node.policy``."""

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Those in force."""
        ...


class PolicyStatus(Resource):
    """What of wanted policies is in force, and why the rest is not."""

    _changed: Condition
    _policies: InForce
    _numbers: Numbers
    _synced: bool
    _wanted: dict[str, Policy]
    _workloads: dict[str, Workload]
    _local: set[str]
    _due: dict[str, float]
    _pods: dict[str, tuple[Workload, int]] | None
    _host: Workload | None
    _origins: dict[ObjectKey, Origin]
    _missing: dict[ObjectKey, tuple[str, ...]]
    _errors: dict[ObjectKey, ManifestError]
    _reasons: dict[ObjectKey, str]
    _failures: dict[str, Exception]
    _on_status: Callable[[ObjectKey, Status], object]

    @property
    @abstractmethod
    def _over(self) -> bool:
        """Whether nothing is brought into force any more."""

    @property
    @abstractmethod
    def _host_waits(self) -> bool:
        """Whether the node itself is not held to policies as it is."""

    @property
    def errors(self) -> Mapping[ObjectKey, ManifestError]:
        """Objects that say what cannot be, or cannot be enforced. What they last said right holds."""
        return dict(self._errors)

    @property
    def failures(self) -> Mapping[str, Exception]:
        """What could not be put in force, by name of the policy, ``peers`` or ``pods``; it is tried again."""
        return dict(self._failures)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Pods that are known, and have no number yet."""
        here = (name for name in tuple(self._local) if name not in (self._pods or {}))
        return tuple(sorted({*here, *self._due}))

    @property
    def problem(self) -> str:
        """What is not in force as it is wanted, in a sentence; empty if all is."""
        if not self._synced:
            return "not all policies are in force yet"
        for name, error in self._failures.items():
            return f"{len(self._failures)} not in force as wanted, such as {name}: {error}"
        waiting = self.waiting
        if waiting and self._numbers.problem:
            return f"{len(waiting)} pods wait for a number, such as {waiting[0]}: {self._numbers.problem}"
        return ""

    def status(self, key: ObjectKey) -> Status:
        """How far a policy is on this node: ``status(("NetworkPolicy", "shop", "web"))``.

        It is programmed if it is in force for all pods of this node that it selects. What it names that is
        not there is told as the reason, and is nobody.
        """
        with self._changed:
            return self._status(key)

    def wait_enforced(self, key: ObjectKey, timeout: float | None = None, *, generation: int = 0) -> None:
        """Wait until a policy is in force for all pods of this node that it selects.

        :param key: kind, namespace and name of the object.
        :param generation: the ``metadata.generation`` that is to be in force, or a later one. An API server
            tells it to whoever writes the object.
        :raises NotProgrammedError: not in time; it says why.
        :raises ClosedError: the reconciler has ended.
        """

        def enforced() -> bool:
            origin = self._origins.get(key)
            told = origin is not None and origin.generation >= generation
            return told and self._status(key).state is State.PROGRAMMED

        with self._changed:
            self._changed.wait_for(lambda: enforced() or self._over, timeout)
            if enforced():
                return
            if self._over:
                raise ClosedError("the reconciler has ended")
            raise NotProgrammedError(key, self._status(key), timeout)

    def _status(self, key: ObjectKey) -> Status:
        if (wrong := self._errors.get(key)) is not None:
            return Status(State.ERROR, str(wrong))
        origin = self._origins.get(key)
        if origin is None:
            return Status(State.UNKNOWN)
        for name in origin.policies:
            if (failed := self._failures.get(name)) is not None:
                return Status(State.ERROR, str(failed))
            if self._policies.policies.get(name) != self._wanted[name]:
                return Status(State.PENDING)
        selectors = [self._wanted[name].subject for name in origin.policies]
        waiting = [
            name
            for name in self._local
            if (self._pods or {}).get(name, (None,))[0] != self._workloads[name]
            and any(each.matches(self._workloads[name].labels) for each in selectors)
        ]
        if waiting:
            return Status(State.PENDING, f"{len(waiting)} pods wait for it, such as {min(waiting)}")
        if self._host_waits and self._host and any(each.matches(self._host.labels) for each in selectors):
            return Status(State.PENDING, "the node itself waits for it")
        missing = self._missing.get(key, ())
        reason = f"it names what is not there: {', '.join(missing)}" if missing else ""
        return Status(State.PROGRAMMED, reason)

    def _tell(self, key: ObjectKey, error: ManifestError | None) -> None:
        about = dict(zip(("object_kind", "object_namespace", "object_name"), key, strict=True))
        if error is not None:
            self._errors[key] = error
            _log.error("not enforced as it is: %s", error, extra=about)
        elif self._errors.pop(key, None) is not None:
            _log.info("enforced again", extra=about)

    def _tell_status(self) -> None:
        """Tell of what is wrong with objects, and what is not any more."""
        with self._changed:
            self._changed.notify_all()
            troubled = {name for name in self._failures if name in self._wanted}
            keys = {*self._errors, *self._missing}
            if troubled:
                keys |= {key for key, each in self._origins.items() if troubled.intersection(each.policies)}
            found = {key: self._status(key) for key in keys | self._reasons.keys()}
            told = {key: each for key, each in found.items() if each.reason != self._reasons.get(key, "")}
            self._reasons = {key: each.reason for key, each in found.items() if each.reason}
        for key, status in told.items():
            if status.state is not State.UNKNOWN:  # who is told of it no more
                self._on_status(key, status)
