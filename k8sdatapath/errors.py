"""Every error this library raises.

::

    DatapathError
    ├── KernelError(OSError)              .op .subject .errno .hint
    │   ├── NotSupportedError             .feature .min_kernel
    │   ├── PermissionDeniedError         which capability, what to run
    │   ├── VerifierError                 .program .log .summary
    │   ├── MapFullError                  the kernel refused an element
    │   ├── DeviceGoneError               the device behind a link or an attach is not there
    │   └── BpffsError                    no bpffs at the path, or the pin cannot be made
    │       └── PinsBusyError             another owner holds the pin directory
    ├── CapacityError                     .resource .needed .capacity; nothing was changed
    ├── KeyNotFoundError(KeyError)
    │   └── ServiceNotFoundError          .frontend .others: what is dialled at the same address
    ├── KeyExistsError(KeyError)
    ├── LayoutError(TypeError)            C and Python side by side
    ├── ObjectError(ValueError)           malformed object; unknown map, program or config name
    ├── ContractError                     a table cannot bind: what is missing, in which object
    ├── ClosedError(ValueError)           use after close
    ├── ModelError(ValueError)            a value of the model that cannot be: bad address, port, protocol
    │   └── RegexError                    .pattern .column .reason
    ├── MissingExtraError(ImportError)    which extra to install
    ├── AddressInUseError                 .address .device: another pod, which is still there, has it
    ├── NotProgrammedError(TimeoutError)  .key .status; an object is not in the kernel in time
    ├── StalePlanError                    the table has changed since the plan was made
    ├── ConfigError(ValueError)           .path into a configuration, and what is wrong there
    ├── SourceError                       a source of desired state cannot be read
    │   └── ManifestError(ValueError)     .path into the YAML, and what is wrong there
    ├── StoreError                        a shared store does not answer, or will not
    │   └── StoreConflictError            .record was changed by somebody else
    └── LabError                          a pod or node of a lab did not come up

Errors carry the next thing the reader would have asked for: the operation, what it was done to,
the kernel's reason, and where one is known a hint that says what to do.
"""

from __future__ import annotations

import difflib
import errno as _errno
import os
from collections.abc import Iterable

__all__ = [
    "AddressInUseError",
    "BpffsError",
    "CapacityError",
    "ClosedError",
    "ConfigError",
    "ContractError",
    "DatapathError",
    "DeviceGoneError",
    "KernelError",
    "KeyExistsError",
    "KeyNotFoundError",
    "LabError",
    "LayoutError",
    "ManifestError",
    "MapFullError",
    "MissingExtraError",
    "ModelError",
    "NotProgrammedError",
    "NotSupportedError",
    "ObjectError",
    "PermissionDeniedError",
    "PinsBusyError",
    "RegexError",
    "ServiceNotFoundError",
    "SourceError",
    "StalePlanError",
    "StoreConflictError",
    "StoreError",
    "VerifierError",
    "near_misses",
]


class DatapathError(Exception):
    """Base class of every error raised by k8sdatapath."""


class KernelError(DatapathError, OSError):
    """The kernel refused an operation.

    :ivar op: what was tried, as a verb phrase (``"attach to tcx ingress"``).
    :ivar subject: what it was tried on (``"eth0"``), may be empty.
    :ivar errno: the kernel's error number, positive.
    :ivar hint: what to do about it, may be empty.
    """

    def __init__(self, op: str, subject: str = "", errno: int = 0, hint: str = "") -> None:
        super().__init__(errno, os.strerror(errno) if errno else "failed")
        self.op = op
        self.subject = subject
        self.errno: int = errno
        self.hint = hint

    def __str__(self) -> str:
        what = f"{self.op}: {self.subject}" if self.subject else self.op
        name = _errno.errorcode.get(self.errno, str(self.errno))
        why = f"{os.strerror(self.errno)} [{name}]" if self.errno else "failed"
        return f"{what}: {why}" + (f" ({self.hint})" if self.hint else "")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.__dict__, self.args)


class NotSupportedError(KernelError):
    """This kernel lacks a feature.

    Raised after the operation itself was refused: the happy path costs no probe.
    """

    def __init__(
        self,
        feature: str,
        *,
        min_kernel: str = "",
        op: str = "",
        subject: str = "",
        errno: int = _errno.EOPNOTSUPP,
        hint: str = "",
    ) -> None:
        since = f"since Linux {min_kernel}" if min_kernel else ""
        super().__init__(op or "use a kernel feature", subject, errno, hint)
        self.feature = feature
        self.min_kernel = min_kernel
        self._since = since

    def __str__(self) -> str:
        where = f" for {self.subject}" if self.subject else ""
        tail = "; ".join(part for part in (self._since, self.hint) if part)
        return f"this kernel does not support {self.feature}{where}" + (f" ({tail})" if tail else "")


class PermissionDeniedError(KernelError):
    """The process lacks a capability; ``hint`` says which and how to get it."""


class VerifierError(KernelError):
    """The kernel's verifier rejected a program.

    ``str()`` is the telling line; ``log`` is all the verifier said.
    """

    def __init__(self, program: str, log: str, errno: int) -> None:
        super().__init__("verify program", program, errno)
        self.program = program
        self.log = log
        self.summary = verifier_summary(log)

    def __str__(self) -> str:
        return f"program {self.program!r} was rejected by the verifier: {self.summary}"


class MapFullError(KernelError):
    """A map has no room for another element; the map is as it was.

    ``written`` counts the elements of a batch that went in before the kernel refused.
    """

    def __init__(self, op: str, subject: str, capacity: int, written: int = 0, hint: str = "") -> None:
        super().__init__(op, subject, _errno.E2BIG, hint)
        self.capacity = capacity
        self.written = written

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.op}: map {self.subject!r} is full: it holds at most {self.capacity} entries{tail}"


class DeviceGoneError(KernelError):
    """The network device of an attachment does not exist, or exists no more."""


class BpffsError(KernelError):
    """A path is not on a BPF filesystem, or what was pinned there cannot be used."""


class PinsBusyError(BpffsError):
    """A pin directory is locked by another owner, in this process or in the one that ``hint`` names."""


#: What to do about what is no part of a Capacity.
_ROOM = {
    "source ranges": "fewer, wider ones do",
    "numbers of identities": "fewer labels that count, or a Collector that frees unused numbers",
    "numbers of networks": "fewer, wider networks in policies do",
    "states of an automaton": "an expression with fewer `.*` and smaller repeats takes fewer",
    "facts about headers that one set of HTTP rules asks for": "fewer headers, values and hosts do",
    "HTTP rules of one path that ask for headers": "fewer do",
    "kd_masq_rules": "fewer, wider networks do",
    "kd_masq_devices": "fewer do",
    "kd_peers": "fewer, wider networks do",
    "kd_peer_nodes": "fewer do",
}


class CapacityError(DatapathError):
    """A desired state would not fit. It was refused before anything was written."""

    def __init__(self, resource: str, needed: int, capacity: int, subject: str = "", hint: str = "") -> None:
        super().__init__(resource, needed, capacity, subject, hint)
        self.hint = hint
        self.resource = resource
        self.needed = needed
        self.capacity = capacity
        self.subject = subject

    def __str__(self) -> str:
        who = f"{self.subject}: " if self.subject else ""
        over = self.needed - self.capacity
        hint = self.hint or _ROOM.get(
            self.resource, "Node.resize gives tables more room, in an agent `capacity`"
        )
        return (
            f"{who}{self.needed} {self.resource} needed, {self.capacity} fit: {over} too many; "
            f"nothing was changed ({hint})"
        )


class KeyNotFoundError(DatapathError, KeyError):
    """A map has no such key; ``args`` are the key and the map's name."""

    def __str__(self) -> str:
        key, *name = self.args
        return f"no such key{f' in map {name[0]!r}' if name else ''}: {key!r}"


class ServiceNotFoundError(KeyNotFoundError):
    """No service is dialled at a frontend.

    :ivar frontend: which, as text.
    :ivar others: what is dialled at the same address, as text.
    """

    def __init__(self, frontend: str, others: tuple[str, ...] = ()) -> None:
        super().__init__(frontend, others)
        self.frontend = frontend
        self.others = others

    def __str__(self) -> str:
        there = f"; at this address there is {', '.join(self.others)}" if self.others else ""
        return f"no service is dialled at {self.frontend}{there}"


class KeyExistsError(DatapathError, KeyError):
    """``insert`` met a key that is already there; ``args`` are the key and the map's name."""

    def __str__(self) -> str:
        key, *name = self.args
        return f"key exists already{f' in map {name[0]!r}' if name else ''}: {key!r}"


class LayoutError(DatapathError, TypeError):
    """A Python struct and the C struct of the loaded object differ; the message shows both."""


class ObjectError(DatapathError, ValueError):
    """A BPF object is malformed, or has no map, program or config of the name asked for."""


class ContractError(DatapathError):
    """Something offered to ``bind()`` lacks a map that the table is made of."""


class ClosedError(DatapathError, ValueError):
    """A closed resource was used."""


class ModelError(DatapathError, ValueError):
    """A value that no service, backend or frontend can have; the message names value and reason."""


class RegexError(ModelError):
    """A regular expression that is none, or asks for what is not supported.

    :ivar column: where in the pattern, from 0.
    """

    def __init__(self, pattern: str, column: int, reason: str) -> None:
        self.pattern = pattern
        self.column = column
        self.reason = reason
        super().__init__(f"regular expression {pattern!r}, column {column + 1}: {reason}")


class MissingExtraError(DatapathError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra: pip install 'k8sdatapath[{extra}]'")
        self.extra = extra


class AddressInUseError(DatapathError):
    """A pod is to have the address of another one, which is still there; nothing was changed.

    :ivar address: the address.
    :ivar device: the node's end of the veth of the pod that has it.
    """

    def __init__(self, address: object, device: str) -> None:
        super().__init__(f"{address} belongs to the pod at {device}: detach that one first")
        self.address = address
        self.device = device

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.address, self.device)


class NotProgrammedError(DatapathError, TimeoutError):
    """An object was not in the kernel in time; the message says how far it is.

    :ivar key: its kind, namespace and name.
    :ivar status: the ``Status`` that a reconciler has of it.
    """

    def __init__(self, key: tuple[str, str, str], status: object, seconds: float | None = None) -> None:
        super().__init__(key, status, seconds)
        self.key = key
        self.status = status
        self.seconds = seconds

    def __str__(self) -> str:
        kind, namespace, name = self.key
        who = f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
        when = "" if self.seconds is None else f" after {self.seconds:g} s"
        return f"{who} is not programmed{when}: {self.status}"


class StalePlanError(DatapathError):
    """A plan was applied to a table that has changed since; nothing was changed."""


class SourceError(DatapathError):
    """A source of desired state cannot be read."""


class _FieldError(Exception):
    """What people have written says what cannot be, in one of its fields."""

    def __init__(self, where: str, path: str, reason: str) -> None:
        super().__init__(where, path, reason)
        self.where = where
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.reason) if part)


class ManifestError(_FieldError, SourceError, ValueError):
    """A manifest says something that the datapath cannot do.

    :ivar where: file and document, e.g. ``"web.yaml: Service default/web"``.
    :ivar path: the field, e.g. ``"spec.ports[0].port"``, may be empty.
    :ivar reason: what is wrong with it.
    """


class ConfigError(_FieldError, DatapathError, ValueError):
    """A configuration says something that cannot be, or that nobody understands.

    :ivar where: the file or flag.
    :ivar path: the field, e.g. ``"loadBalancer.algorithm"``, may be empty.
    :ivar reason: what is wrong with it.
    """


class StoreError(DatapathError):
    """A store that nodes share does not answer, or refuses. Whether a change was made is not known."""


class StoreConflictError(StoreError):
    """A record is not what it was, because somebody else was quicker. Nothing was changed.

    :ivar record: its kind and name.
    """

    def __init__(self, record: str) -> None:
        super().__init__(record)
        self.record = record

    def __str__(self) -> str:
        return f"{self.record} was changed by somebody else"


class LabError(DatapathError):
    """A pod or node of a lab did not come up, or a command in it failed."""


def near_misses(wanted: str, known: Iterable[str]) -> str:
    """The tail of a "no such name" message: close names first, else what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(wanted, names, n=3)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "there is " + (", ".join(names) if names else "none at all")


_NOISE = ("processed ", "max_states", "verification time", "stack depth", "mark_read", "-- END")


def verifier_summary(log: str) -> str:
    """The line of a verifier log that says why, with the source line it belongs to."""
    lines = [line.strip() for line in log.splitlines()]
    telling = [line for line in lines if line and not line.startswith(_NOISE)]
    if not telling:
        return "the kernel gave no reason"
    source = next((line for line in reversed(telling) if line.startswith("; ")), "")
    return telling[-1] + (f" (at `{source[2:]}`)" if source and source != telling[-1] else "")


def _rebuild(cls: type[KernelError], state: dict[str, object], args: tuple[object, ...]) -> KernelError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error
