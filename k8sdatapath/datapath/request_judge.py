"""RequestJudge: what would become of a request, by the program that reads them, over the live rules."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from threading import Lock
from typing import Any

from attrs import frozen

from k8sdatapath import maps, programs
from k8sdatapath.datapath.contract import Bindable, bind_maps, names_of
from k8sdatapath.datapath.l7_view import SWITCH, reasons_of
from k8sdatapath.layout import layout_of
from k8sdatapath.model import IPAddress, Protocol
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.resource import Resource
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.l7 import AHEAD, TEXT, WORDS, ConnFlags, ConnRow, RuleNameKey, StreamRow
from k8sdatapath.tables.policy import NameRow

__all__ = ["CONTRACT", "RequestJudge", "RequestVerdict"]

_ASKED = ("kd_l7_table", "kd_l7_rows", "kd_l7_automata", "kd_l7_ports")
_OF_POLICIES = ("kd_endpoints", "kd_ipcache", "kd_networks", "kd_policies", "kd_rules")

#: The maps that a judge reads; those of policies where there are any.
CONTRACT: Mapping[str, Any] = {
    **dict.fromkeys((*_ASKED, *_OF_POLICIES), maps.Map),
    "kd_l7_names": maps.Hash[RuleNameKey, NameRow],
}
_ETHERNET = bytes(14)


@frozen
class RequestVerdict:
    """What became of the requests in some bytes.

    :ivar held: whether they are held to rules at all.
    :ivar allowed: how many were allowed.
    :ivar reason: why the next one was denied; empty: it was not.
    :ivar rule: the rule that allowed the last one; empty: none did, or nobody knows what it is called.
    :ivar audited: the policy only looks on, so that all passes.
    """

    held: bool
    allowed: int
    reason: str
    rule: str
    audited: bool = False


class RequestJudge(Resource):
    """Runs the program that reads requests on any bytes, and changes nothing::

        with RequestJudge.bind(PinDir("/sys/fs/bpf/k8sdatapath")) as judge:
            print(judge.judge(client, server, 8080, b"GET /charge HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"))

    Make one with :meth:`bind`; its methods may be called from any thread.
    """

    def __init__(self, live: Mapping[str, Any], spec: ObjectSpec, own: ExitStack) -> None:
        self._names: maps.Hash[RuleNameKey, NameRow] = live["kd_l7_names"]
        shared = {name: each for name, each in live.items() if name != "kd_l7_names"}
        loaded = own.enter_context(spec.load(reuse=shared))
        self._trial = loaded.map("kd_l7_trial", maps.Array[ConnRow])
        self._program = loaded.program("l7_judge", programs.TC)
        self._reasons = reasons_of(spec)
        self._lock = Lock()
        self._own = own

    @classmethod
    def bind(cls, source: Bindable) -> RequestJudge:
        """A judge by the rules whose maps an object, a pin directory or a mapping has.

        :raises ContractError: a map is missing, as where requests are not held to policies.
        :raises LayoutError: a map holds something else.
        """
        spec = ObjectSpec.from_file("requests")
        _, have = names_of(source)
        contract = {name: kind for name, kind in CONTRACT.items() if name in have or name not in _OF_POLICIES}
        live, owned = bind_maps(source, contract, "a judge of requests", switch=SWITCH)
        with ExitStack() as undo:
            undo.enter_context(owned)
            sizes = {name: live[name].info.max_entries if name in live else 1 for name in _sized(spec)}
            return cls(live, spec.with_maps(**sizes), undo.pop_all())

    def judge(
        self,
        client: IPAddress,
        server: IPAddress,
        port: int,
        *pieces: bytes,
        at_client: bool = False,
    ) -> RequestVerdict:
        """What becomes of requests that come over a new connection, in pieces of at least one byte.

        :param port: of the server, by its own address.
        :param at_client: by the policies of the client's pod, instead of the server's.
        """
        way = Tuple(server, client, port, 0, Protocol.TCP)
        flags = ConnFlags.CLIENT if at_client else 0
        with self._lock:
            self._trial[0] = _new(way, flags)
            for piece in pieces:
                self._program.run(_ETHERNET + piece)
            row = self._trial[0]
        held = bool(row.rules) and not row.flags & ConnFlags.ANY
        name = self._names.get(RuleNameKey(row.rules, row.requests.number)) if row.asked else None
        return RequestVerdict(
            held,
            row.asked,
            self._reasons[row.reason] if row.reason else "",
            "" if name is None else name.text,
            bool(row.flags & ConnFlags.AUDITED),
        )

    def close(self) -> None:
        """Let go of the program and the maps."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<RequestJudge {self._program!r}>"


def _sized(spec: ObjectSpec) -> list[str]:
    """Maps whose size does not matter to the program, or is that of the live ones."""
    fixed = ("kd_l7_trial", "kd_l7_counts", "kd_l7_events", "kd_l7_sock")
    return [name for name in spec.maps if name.startswith("kd_") and name not in fixed]


def _new(way: Tuple, flags: int) -> ConnRow:
    """A connection of which nothing was read."""
    nothing = StreamRow(0, 0, (0,) * WORDS, 0, 0, 0, 0, 0, 0)
    fields: dict[str, Any] = {each.name: 0 for each in layout_of(ConnRow).fields}
    begun = {"way": way, "requests": nothing, "responses": nothing, "flags": flags}
    return ConnRow(**fields | begun | {"text": bytes(TEXT + AHEAD), "ahead": bytes(AHEAD + 8)})
