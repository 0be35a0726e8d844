"""Values of a configuration, from what YAML and flags say; what cannot be is a ``ValueError``, a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from math import inf
from pathlib import Path
from typing import Any, Final, TypeVar

from attrs import frozen

from k8sdatapath.errors import ManifestError
from k8sdatapath.hubble.metrics import FlowMetrics
from k8sdatapath.kube.egress import EgressRule
from k8sdatapath.model import IPAddress, IPNetwork, Masquerade, Protocol, Selection, address, network, port
from k8sdatapath.model.address import shown

__all__ = ["UNSAID", "Acceleration", "IdentityMode", "Listen", "LogFormat", "TunnelKind"]

UNSAID: Final = object()
"""What a value comes to that leaves things as they are."""

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class Acceleration(Enum):
    """Whether flows are continued in the drivers of uplinks."""

    DISABLED = "disabled"
    NATIVE = "native"
    BEST_EFFORT = "best-effort"


class TunnelKind(Enum):
    """What packets to other nodes are wrapped in."""

    VXLAN = "vxlan"
    GENEVE = "geneve"


class Aggregation(Enum):
    """How much is told of packets, in Cilium's words."""

    NONE = "none"
    LOWEST = "lowest"
    LOW = "low"
    MEDIUM = "medium"
    MAXIMUM = "maximum"


class IdentityMode(Enum):
    """Where the numbers of label sets come from: objects of the cluster, an etcd, or each node by itself."""

    CRD = "crd"
    ETCD = "etcd"
    KVSTORE = "kvstore"
    """As Cilium calls the former."""
    MEMORY = "memory"


class LogFormat(Enum):
    """How log lines look: for programs, or for people."""

    JSON = "json"
    TEXT = "text"


@frozen
class Listen:
    """An address and a TCP port to listen at; port 0 is one that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def text(value: Any) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{shown(value)} is not a text")
    return value.strip()


def flag(value: Any) -> bool:
    """Whether; Helm values have it quoted at times."""
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise ValueError(f"{shown(value)} is neither true nor false")
    return found


def unless(value: Any) -> bool:
    """Whether not."""
    return not flag(value)


def count(value: Any) -> int:
    """How many: one at least."""
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, str) and value.isdecimal())
    ):
        raise ValueError(f"{shown(value)} is not a number")
    if int(value) < 1:
        raise ValueError(f"{shown(value)} is too few")
    return int(value)


def seconds(value: Any) -> float:
    """A time; 0: none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = -1.0
    if isinstance(value, bool) or not 0 <= found < inf:
        raise ValueError(f"{shown(value)} is no number of seconds")
    return found


def given_count(value: Any) -> Any:
    """How many; 0, as Helm values have it, leaves it as it is."""
    return UNSAID if str(value) == "0" else count(value)


def given_port(value: Any) -> Any:
    """A port; 0, as Helm values have it, leaves it as it is."""
    found = given_count(value)
    return found if found is UNSAID else port(found)


def path(value: Any) -> Path:
    """A path."""
    return Path(text(value))


def texts(value: Any) -> tuple[str, ...]:
    """Texts: a list, or one text with commas or spaces between them."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if not isinstance(value, list | tuple):
        raise ValueError(f"{shown(value)} is not a list")
    return tuple(dict.fromkeys(map(text, value)))


def devices(value: Any) -> tuple[str, ...]:
    """Devices by their names; Cilium takes patterns as well."""
    found = texts(value)
    if patterns := [name for name in found if name.endswith("+")]:
        raise ValueError(f"{shown(patterns[0])} is a pattern: devices are named here one by one")
    return found


def host(value: Any) -> str:
    """A host; Cilium looks for one itself if told so."""
    if value == "auto":
        raise ValueError("'auto' is not an address: nothing is looked for in the cluster, say where it is")
    return text(value)


def each(convert: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Several of something."""
    return lambda value: tuple(convert(one) for one in texts(value))


def metrics(value: Any) -> tuple[str, ...]:
    """Metrics of flows, as Hubble's configuration writes them: a list, or one text with spaces between."""
    found = tuple(value.split()) if isinstance(value, str) else texts(value)
    FlowMetrics(found)  # which says what cannot be
    return found


def kept(value: Any) -> int:
    """How many flows: not more than anybody has memory for."""
    number = count(value)
    if number > 1 << 24:
        raise ValueError(f"{number} is too many")
    return number


def served(value: Any) -> str:
    """Where gRPC is served: ``HOST:PORT``, or ``:PORT`` for all addresses."""
    found = listen(value)
    if found is None:
        raise ValueError("none is not an address: leave it out")
    host = f"[{found.host}]" if ":" in found.host else found.host
    return f"{host or '[::]'}:{found.port}"


def one_of(kind: type[E]) -> Callable[[Any], E]:
    """One of a few words."""

    def convert(value: Any) -> E:
        words = {str(member.value).lower(): member for member in kind}
        found = words.get(str(value).lower())
        if found is None:
            raise ValueError(f"{shown(value)} is none of {', '.join(words)}")
        return found

    return convert


def either(one: str, other: str) -> Callable[[Any], bool]:
    """Whether it is the one word, and not the other."""

    def convert(value: Any) -> bool:
        if str(value).lower() not in (one, other):
            raise ValueError(f"{shown(value)} is neither {one} nor {other}")
        return str(value).lower() == one

    return convert


def selection(value: Any) -> Selection:
    """How backends are chosen."""
    words = {each.name.lower().replace("_", "-"): each for each in Selection}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError(f"{shown(value)} is none of {', '.join(words)}")
    return found


def listen(value: Any) -> Listen | None:
    """``HOST:PORT``, ``[V6]:PORT``, ``:PORT`` for all addresses; ``none`` for not at all."""
    given = text(value)
    if given == "none":
        return None
    host, colon, number = given.rpartition(":")
    if not colon or not number.isdecimal() or int(number) > 65535:
        raise ValueError(f"{shown(value)} is not an address and a port, as in 127.0.0.1:10256")
    bare = host.removeprefix("[").removesuffix("]")
    if bare:
        address(bare)
    return Listen(bare or "::", int(number))


def port_range(value: Any) -> tuple[int, int]:
    """``30000,32767`` as Cilium has it, or ``30000-32767`` as kube-proxy has it."""
    given: Iterable[Any] = value if isinstance(value, list) else str(value).replace("-", ",").split(",")
    bounds = [str(bound).strip() for bound in given]
    if len(bounds) != 2 or not all(bound.isdecimal() for bound in bounds):
        raise ValueError(f"{shown(value)} is not a range of ports, as in 30000,32767")
    first, last = (port(int(bound)) for bound in bounds)
    if first > last:
        raise ValueError(f"{shown(value)} ends before it begins")
    return first, last


def log_level(value: Any) -> str:
    """How much is logged."""
    levels = ("debug", "info", "warning", "error")
    if str(value).lower() not in levels:
        raise ValueError(f"{shown(value)} is none of {', '.join(levels)}")
    return str(value).lower()


def addresses(value: Any) -> tuple[IPAddress, ...]:
    """Addresses."""
    return each(address)(value)


def ports(value: Any) -> tuple[tuple[Protocol, int], ...]:
    """Ports with their protocols: ``21/TCP``."""
    return Masquerade(netfilter=texts(value)).netfilter


def egress(value: Any) -> tuple[EgressRule, ...]:
    """Pods that leave under addresses of their own."""
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is not a list")
    found = []
    for number, rule in enumerate(value):
        try:
            found.append(EgressRule.parse(rule))
        except ManifestError as error:
            dot = "." if error.path else ""
            raise ValueError(f"[{number}]{dot}{error.path}: {error.reason}") from None
    return tuple(found)


def networks(value: Any) -> tuple[IPNetwork, ...]:
    """Networks."""
    return each(network)(value)
