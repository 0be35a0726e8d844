"""L7View: what HTTP policy does, out of the maps of whoever put it in force."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.flow import Peer
from k8sdatapath.layout import u64
from k8sdatapath.model.policy import Toward
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.resource import Resource
from k8sdatapath.tables.l7 import ConnFlags, ConnRow, PortFlags, PortKey, PortRow, RuleNameKey
from k8sdatapath.tables.policy import NameRow

__all__ = ["L7View", "LiveConnection", "LiveRequestRule", "reasons_of"]

_CONTRACT = {
    "kd_l7_conns": maps.Hash[u64, ConnRow],
    "kd_l7_counts": maps.PerCpuArray[u64],
    "kd_l7_names": maps.Hash[RuleNameKey, NameRow],
    "kd_l7_ports": maps.Hash[PortKey, PortRow],
}
#: With what a node holds requests to policies.
SWITCH = "l7=True, of an agent with policy and l7Proxy"


@frozen
class LiveConnection:
    """A connection whose requests are read.

    :ivar at: the end at which they are read: ``server``, or ``client``.
    :ivar requests: how many were allowed.
    :ivar responses: how many of these were answered.
    :ivar state: ``denied`` passes nothing any more, ``audited`` everything.
    """

    client: Peer
    server: Peer
    at: str
    state: str
    requests: int
    responses: int


@frozen
class LiveRequestRule:
    """A rule that requests are held to.

    :ivar rules: the number of the set that it belongs to, which policies and ports have; likewise
        :attr:`LiveRule.requests`.
    :ivar number: its place there, as events have it.
    :ivar rule: what requests it allows.
    :ivar ports: of servers that have the set whoever asks.
    :ivar observed: ports where requests are only looked at, and denied nothing by the set: of servers, or
        those that a pod asks, as in ``10.244.1.2 to port 8080``.
    :ivar connections: whose requests are held to the set now.
    """

    rules: int
    number: int
    rule: str
    ports: tuple[Peer, ...]
    observed: tuple[str, ...]
    connections: int


class L7View(Resource):
    """Reads what some process has put in force, and changes nothing::

        with L7View.bind(PinDir("/sys/fs/bpf/k8sdatapath")) as view:
            print(view.stats())

    Make one with :meth:`bind`.
    """

    def __init__(self, tables: Mapping[str, Any], own: ExitStack) -> None:
        self._conns: maps.Hash[int, ConnRow] = tables["kd_l7_conns"]
        self._counts: maps.PerCpuArray[int] = tables["kd_l7_counts"]
        self._names: maps.Hash[RuleNameKey, NameRow] = tables["kd_l7_names"]
        self._ports: maps.Hash[PortKey, PortRow] = tables["kd_l7_ports"]
        self._reasons = reasons_of(ObjectSpec.from_file("stream"))
        self._own = own

    @classmethod
    def bind(cls, source: Bindable) -> L7View:
        """A view of the maps of an object, a pin directory, or a mapping of name to map.

        :raises ContractError: a map is missing, as where requests are not held to policies.
        :raises LayoutError: a map holds something else.
        """
        return cls(*bind_maps(source, _CONTRACT, "a view of HTTP policy", switch=SWITCH))

    def stats(self) -> dict[str, int]:
        """How often each thing has become of requests, and of connections."""
        counts = list(self._counts)
        return {name: sum(counts[number]) for number, name in self._reasons.items() if any(counts[number])}

    def connections(self) -> tuple[LiveConnection, ...]:
        """Those whose requests are read now."""
        return tuple(_connection(row) for _, row in self._conns.items())

    def rules(self) -> tuple[LiveRequestRule, ...]:
        """What requests are held to, set by set. One that nobody asks for any more stays for a while."""
        held = Counter(row.rules for _, row in self._conns.items())
        ports: dict[int, list[Peer]] = defaultdict(list)
        observed: dict[int, list[str]] = defaultdict(list)
        for end, port in self._ports.items():
            if port.flags & PortFlags.AUDIT:
                observed[port.rules].append(_observed(end))
            else:
                ports[port.rules].append(Peer(end.addr, end.port))
        return tuple(
            LiveRequestRule(
                key.rules,
                key.rule,
                row.text,
                tuple(sorted(ports[key.rules], key=str)),
                tuple(sorted(observed[key.rules])),
                held[key.rules],
            )
            for key, row in sorted(self._names.items(), key=lambda each: (each[0].rules, each[0].rule))
        )

    def close(self) -> None:
        """Let go of the maps."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<L7View {self._conns!r}>"


def _observed(end: PortKey) -> str:
    if end.toward == Toward.INGRESS:
        return str(Peer(end.addr, end.port))
    return f"{end.addr} to port {end.port}"


def reasons_of(spec: ObjectSpec) -> dict[int, str]:
    """The names of what becomes of requests, which the object itself tells."""
    var = next(each for each in spec.btf.datasec(".kd.reasons") if each.name == "kd_l7_reasons")
    return {number: name.removeprefix("KD_HTTP_") for name, number in spec.btf.enumerators(var.type_id)}


def _connection(row: ConnRow) -> LiveConnection:
    flags, way = ConnFlags(row.flags & _KNOWN), row.way
    state = "denied" if ConnFlags.ENDED in flags else "audited" if ConnFlags.AUDITED in flags else "read"
    return LiveConnection(
        Peer(way.dst, way.dport),
        Peer(way.src, way.sport),
        "client" if ConnFlags.CLIENT in flags else "server",
        state,
        row.asked,
        row.answered,
    )


_KNOWN = sum(ConnFlags)
