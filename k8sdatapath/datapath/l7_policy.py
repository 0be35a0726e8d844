"""L7Policy: which requests of HTTP servers get, decided at their sockets, without a proxy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import RLock
from typing import Any

from attrs import evolve, field, frozen

from k8sdatapath import maps, programs
from k8sdatapath.component import Report
from k8sdatapath.datapath.contract import bind_maps
from k8sdatapath.datapath.http_event import HTTPEvent
from k8sdatapath.datapath.http_rule_sets import RuleSets
from k8sdatapath.datapath.l7_keeper import L7Keeper
from k8sdatapath.datapath.l7_view import reasons_of
from k8sdatapath.datapath.request_judge import RequestJudge
from k8sdatapath.datapath.stream_reaper import StreamReaper
from k8sdatapath.errors import CapacityError, ModelError
from k8sdatapath.layout import u32, u64
from k8sdatapath.links import First
from k8sdatapath.maps import Map
from k8sdatapath.model import IPAddress, address
from k8sdatapath.model.address import port as to_port
from k8sdatapath.model.http import HTTPReason
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.model.policy import Toward
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.programs import Direction
from k8sdatapath.pybpf.memory import wait_for_programs
from k8sdatapath.resource import Resource
from k8sdatapath.tables.l7 import (
    AutomatonRow,
    CellBlock,
    ConnRow,
    EventRow,
    FactRow,
    PortFlags,
    PortKey,
    PortRow,
    RuleNameKey,
)
from k8sdatapath.tables.policy import NameRow

__all__ = ["CONTRACT", "L7Policy", "L7Port", "end_connections"]

CONTRACT = {
    "kd_l7_table": maps.Array[CellBlock],
    "kd_l7_rows": maps.Array[FactRow],
    "kd_l7_automata": maps.Array[AutomatonRow],
    "kd_l7_names": maps.Hash[RuleNameKey, NameRow],
    "kd_l7_ports": maps.Hash[PortKey, PortRow],
    "kd_l7_conns": maps.Hash[u64, ConnRow],
    "kd_l7_closers": maps.Hash[u64, u32],
    "kd_l7_counts": maps.PerCpuArray[u64],
    "kd_l7_events": maps.RingBuffer[EventRow],
}


def _to_rules(rules: Iterable[HTTPRule] | None) -> frozenset[HTTPRule] | None:
    return None if rules is None else frozenset(rules)


@frozen
class L7Port:
    """What holds at a server's port, whoever its client is: ``L7Port("10.0.0.5", 8080, [HTTPRule(...)])``.

    :param address: of the server.
    :param rules: one is enough; none at all: no request is allowed; None: nothing is asked.
    :param observe: requests that are allowed are events too, and responses.
    :param audit: nothing is denied; what would be is only told.
    """

    address: IPAddress = field(converter=address)
    port: int = field(converter=to_port)
    rules: frozenset[HTTPRule] | None = field(default=None, converter=_to_rules)
    observe: bool = field(default=False, kw_only=True)
    audit: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.rules is None and not self.observe:
            raise ModelError(f"{self} asks for nothing: give rules, or observe=True")

    @property
    def end(self) -> tuple[IPAddress, int]:
        """Address and port, of which there is one."""
        return self.address, self.port

    def __str__(self) -> str:
        where = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{where}:{self.port}"


@frozen
class L7Plan:
    """What would change at ports.

    :ivar changed: those that are new or become others.
    :ivar removed: ends that nothing is asked for any more.
    """

    changed: tuple[L7Port, ...]
    removed: tuple[tuple[IPAddress, int], ...]
    _policy: L7Policy = field(repr=False, eq=False, alias="policy")

    def apply(self) -> Report:
        """Carry it out."""
        return self._policy._apply(self)


class L7Policy(Resource):
    """Holds requests to rules, at the sockets of servers::

        with L7Policy.load() as l7:
            l7.attach(cgroup)                      # where the servers are
            l7.attach_pod(netns)                   # closes what is denied, after a 403
            l7.upsert(L7Port("10.0.0.5", 8080, [HTTPRule(method="POST", path="/charge")]))

    Connections are looked at from their beginning on: those that are older are not. Policies that were bound
    with ``l7=`` this one have rules of their own for every pair of pods, which go before those of a port.

    Over pinned maps, what an earlier process has asked for holds until :meth:`forget_strangers`, and
    connections go on as they were begun.

    All methods may be called from any thread.

    """

    def __init__(self, loaded: Object, own: ExitStack) -> None:
        self._loaded = loaded
        self._own = own
        tables, views = bind_maps(loaded, CONTRACT, "HTTP policy", keep=True)
        own.enter_context(views)
        self._sets = RuleSets(tables, wait_for_programs)
        own.callback(self._sets.close)
        self._port_rows: maps.Hash[PortKey, PortRow] = tables["kd_l7_ports"]
        self._automata: maps.Array[AutomatonRow] = tables["kd_l7_automata"]
        self._conns: maps.Hash[int, ConnRow] = tables["kd_l7_conns"]
        self._closers: maps.Hash[int, int] = tables["kd_l7_closers"]
        self._counts: maps.PerCpuArray[int] = tables["kd_l7_counts"]
        self._events: maps.RingBuffer[EventRow] = tables["kd_l7_events"]
        self._reasons = reasons_of(loaded.spec)
        self._reaper = StreamReaper.bind(loaded)
        own.callback(lambda: self._reaper.close())
        self._due = 0  # how often connections are still to be looked at
        self._denied = 0  # when they were looked at last
        self._lock = RLock()
        self._ports: dict[tuple[IPAddress, int], L7Port] = {}
        self._shown: dict[IPAddress, frozenset[tuple[Toward, int]]] = {}
        self._rows: dict[PortKey, frozenset[HTTPRule]] = {}  # those of this process, and what they ask for
        self._strange = set(self._port_rows)  # of an earlier process
        self._pods: dict[int, tuple[NetNs, ExitStack]] = {}  # with links, by cookie
        self._keeper = own.enter_context(L7Keeper(self._tend))

    @classmethod
    def load(cls, *, reuse: Mapping[str, Map] = {}) -> L7Policy:
        """Load the programs.

        :param reuse: maps of the other programs, where policies are enforced.
        :raises NotSupportedError: the kernel cannot do it.
        """
        spec = ObjectSpec.from_file("stream")
        alone = {name: 1 for name in _OF_POLICIES if name not in reuse and name in spec.maps}
        given = {name: each for name, each in reuse.items() if name in spec.maps}
        with ExitStack() as own:
            loaded = own.enter_context(spec.with_maps(**alone).load(reuse=given))
            servers, clients = (
                loaded.map(name, maps.SockHash[u64]) for name in ("kd_l7_sockets", "kd_l7_clients")
            )
            for sockets in (servers, clients):
                own.enter_context(loaded.program("l7_received", programs.SkSkb).attach(sockets))
            own.enter_context(loaded.program("l7_sent", programs.SkMsg).attach(clients))
            made = cls(loaded, own)
            made._own = own.pop_all()
            return made

    @classmethod
    def bind(cls, loaded: Object) -> L7Policy:
        """Over the maps of a loaded object, whose programs somebody else attaches.

        :raises NotSupportedError: the kernel cannot end connections.
        """
        with ExitStack() as own:
            made = cls(loaded, own)
            made._own = own.pop_all()
            return made

    def go_on_in(self, loaded: Object) -> None:
        """Other programs are attached, over the same maps of HTTP policy, and others of what is beside it.

        Connections that there are keep the former programs as long as they live: they are ended.
        """
        with self._lock:
            former, self._reaper = self._reaper, StreamReaper.bind(loaded)
            former.close()
            self._loaded = loaded
            wait_for_programs()
            end_connections(self._conns)
            self._due = _PASSES

    def attach(self, cgroup: Path) -> None:
        """Look at the connections of a cgroup's processes, from now on."""
        for entry in ("l7_guard", "l7_guard_out"):
            self._own.enter_context(self._loaded.program(entry, programs.CgroupSkb).attach(cgroup))
        self._own.enter_context(self._loaded.program("l7_sockets", programs.SockOps).attach(cgroup))

    def attach_pod(self, netns: NetNs, device: str = "eth0") -> None:
        """Have denied connections of a pod closed behind the 403, by programs at its own end of its device.

        And those that are older than a policy, or do not close by themselves, within seconds.

        :param netns: the pod's; it stays open until :meth:`detach_pod`.
        """
        hooks = {"l7_leaving": Direction.EGRESS, "l7_arriving": Direction.INGRESS}
        with self._lock, ExitStack() as undo:
            if netns.cookie in self._pods:
                return
            for entry, direction in hooks.items():
                program = self._loaded.program(entry, programs.TC)
                undo.enter_context(program.attach(device, direction, netns=netns, anchor=First()))
            self._tend_pod(netns, undo.pop_all())

    def tend_pod(self, netns: NetNs) -> None:
        """As :meth:`attach_pod`, where somebody else has attached the programs."""
        with self._lock:
            if netns.cookie not in self._pods:
                self._tend_pod(netns, ExitStack())

    def _tend_pod(self, netns: NetNs, links: ExitStack) -> None:
        self._closers[netns.cookie] = 1
        self._pods[netns.cookie] = netns, links
        self._due = _PASSES

    def detach_pod(self, netns: NetNs) -> None:
        """Undo :meth:`attach_pod`, or :meth:`tend_pod`."""
        with self._lock:
            _, links = self._pods.pop(netns.cookie, (None, None))
            if links is not None:
                self._closers.pop(netns.cookie, None)
                links.close()

    def _tend(self) -> None:
        """End connections that are older than what is asked of them, and denied ones that are still there."""
        denied = sum(sum(self._counts[reason]) for reason in _ENDS)
        with self._lock:
            if denied != self._denied:
                self._denied, self._due = denied, _PASSES
            if not self._due:
                return
            self._due -= 1
            for netns, _ in self._pods.values():
                self._reaper.reap(netns)
            self._sets.tend()

    # ---- ports

    @property
    def ports(self) -> tuple[L7Port, ...]:
        """What holds at ports, whoever asks."""
        with self._lock:
            return tuple(self._ports.values())

    def plan(self, wanted: Iterable[L7Port]) -> L7Plan:
        """What to do so that exactly these hold.

        :raises CapacityError: they do not fit, or their rules.
        :raises ModelError: two are of one end.
        """
        desired = _by_end(wanted)
        with self._lock:
            strange = {(key.addr, key.port) for key in self._strange if key.toward == Toward.INGRESS}
            return self._plan(desired, [end for end in (*self._ports, *strange) if end not in desired])

    def _plan(
        self, desired: Mapping[tuple[IPAddress, int], L7Port], gone: Iterable[tuple[IPAddress, int]]
    ) -> L7Plan:
        changed = tuple(each for end, each in desired.items() if self._ports.get(end) != each)
        gone = tuple(gone)
        self._check_room(changed, self._still_shown(gone))
        return L7Plan(changed, gone, self)

    def _check_room(self, changed: Collection[L7Port], shown: Collection[PortKey] = ()) -> None:
        """See that what changes fits, so that nothing is half done."""
        ends = {*self._rows, *self._strange, *(PortKey(*each.end) for each in changed), *shown}
        if len(ends) > (room := self._port_rows.info.max_entries):
            raise CapacityError("ports of HTTP policy", len(ends), room, hint="fewer ports do")
        self._sets.check([_asked(each) for each in changed] + ([_ANYTHING] if shown else []))

    def upsert(self, *ports: L7Port) -> Report:
        """Add ports, or have others hold at their ends; a request that has begun is held to what it began by.

        :raises CapacityError: they do not fit, or their rules; nothing was changed.
        """
        with self._lock:
            return self._plan(_by_end(ports), ()).apply()

    def remove(self, *ends: tuple[IPAddress, int]) -> Report:
        """Ask for nothing any more at some ends; one that is not there is no error.

        :raises CapacityError: one is shown still, and there is no room for that; nothing was changed.
        """
        with self._lock:
            strange = {(key.addr, key.port) for key in self._strange if key.toward == Toward.INGRESS}
            return self._plan({}, {*ends} & {*self._ports, *strange}).apply()

    def show(self, addresses: Iterable[IPAddress], ports: Iterable[tuple[Toward, int]]) -> None:
        """Have requests to a pod, and its own, be events, whether anything holds them to rules or not.

        Nothing is denied for it. What was shown of these addresses, and is not named here, no longer is.

        :param ports: of the pod's servers (``Toward.INGRESS``), and of servers that it asks, as these know
            them (``Toward.EGRESS``). What a pod asks is read only where policies are enforced.
        :raises CapacityError: they do not fit; nothing was changed.
        """
        wanted = frozenset(ports)
        with self._lock:
            before = {each: self._shown.get(each, frozenset()) for each in addresses}
            if all(had == wanted for had in before.values()):
                return
            keys = {PortKey(each, port, way) for each in before for way, port in wanted}
            self._check_room((), keys - self._rows.keys())
            self._shown |= dict.fromkeys(before, wanted)
            for each in before if not wanted else ():
                del self._shown[each]
            gone = {PortKey(each, port, way) for each, had in before.items() for way, port in had - wanted}
            self._write(keys | gone)

    @property
    def shown(self) -> Mapping[IPAddress, frozenset[tuple[Toward, int]]]:
        """What :meth:`show` was told, by address."""
        with self._lock:
            return dict(self._shown)

    def forget_strangers(self) -> None:
        """All that is to hold was asked for: what pinned maps still have from an earlier process goes."""
        with self._lock:
            self._write(self._strange)
            self._sets.drop_strange()
            self._closers.delete_many([cookie for cookie in self._closers if cookie not in self._pods])

    def _apply(self, plan: L7Plan) -> Report:
        with self._lock:
            self._check_room(plan.changed, self._still_shown(plan.removed))
            before = [self._ports.get(each.end) for each in plan.changed]
            for end in plan.removed:
                self._ports.pop(end, None)
            self._ports |= {each.end: each for each in plan.changed}
            self._write({PortKey(*end) for end in (*plan.removed, *(each.end for each in plan.changed))})
            added = before.count(None)
            return Report(added, len(before) - added, len(plan.removed))

    def _write(self, keys: Collection[PortKey]) -> None:
        """Have rows be what is asked for at these ends."""
        self._due = _PASSES
        wanted = {key: each for key in keys if (each := self._wanted(key)) is not None}
        unused = [self._rows.pop(key) for key in keys if key in self._rows]
        rows = {}
        for key, each in wanted.items():
            flags = PortFlags.OBSERVE if each.observe else PortFlags(0)
            if each.audit or each.rules is None:
                flags |= PortFlags.AUDIT
            rows[key] = PortRow(self._sets.use(_asked(each)), flags)
            self._rows[key] = _asked(each)
        self._port_rows.update_many(rows)
        self._port_rows.delete_many([key for key in keys if key not in rows])
        self._strange.difference_update(list(keys))
        for rules in unused:
            self._sets.drop(rules)
        none = self._automata[0]
        self._automata[0] = AutomatonRow(generation=(none.generation + 1) % (1 << 32))

    def _is_shown(self, key: PortKey) -> bool:
        return (Toward(key.toward), key.port) in self._shown.get(key.addr, ())

    def _still_shown(self, ends: Iterable[tuple[IPAddress, int]]) -> list[PortKey]:
        """Of ends where nothing is asked for any more, those whose requests are to be seen all the same."""
        return [key for key in (PortKey(*end) for end in ends) if self._is_shown(key)]

    def _wanted(self, key: PortKey) -> L7Port | None:
        """What is asked for at an end: what was said of it, and it is seen if it is shown."""
        shown = self._is_shown(key)
        port = self._ports.get((key.addr, key.port)) if key.toward == Toward.INGRESS else None
        if port is None:
            return L7Port(key.addr, key.port, observe=True) if shown else None
        return evolve(port, observe=port.observe or shown)

    # ---- what policies ask for

    def check(self, sets: Iterable[frozenset[Any]]) -> None:
        """See that sets of rules fit. For :class:`IdentityPolicy`, as are ``use`` and ``drop``.

        :raises CapacityError: they do not.
        """
        self._sets.check(sets)

    def use(self, requests: frozenset[Any]) -> int:
        """The number of a set of rules, which is enforced by the time this returns."""
        self._due = _PASSES
        return self._sets.use(requests)

    def drop(self, requests: frozenset[Any]) -> None:
        """Undo one ``use``."""
        self._sets.drop(requests)

    # ---- what there is

    def stats(self) -> dict[str, int]:
        """How often each thing has become of requests, and of connections."""
        counts = list(self._counts)
        return {name: sum(counts[number]) for number, name in self._reasons.items() if any(counts[number])}

    def events(self) -> Sequence[HTTPEvent]:
        """Those since the last call: what was denied, and at ports that are observed all else.

        There is one reader: who calls it takes them from all others.
        """
        rules = self._sets.rules
        return [HTTPEvent.of(row, self._reasons, rules) for row in self._events.drain()]

    def judge(self) -> RequestJudge:
        """Who says what would become of requests, by these rules. It is to be closed."""
        return RequestJudge.bind(self._loaded)

    @property
    def connections(self) -> int:
        """Those whose requests are read."""
        return len(self._conns)

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._events.fileno()

    def close(self) -> None:
        """Take the programs off; idempotent."""
        with self._lock:
            for _, links in self._pods.values():
                links.close()
            self._pods.clear()
        self._own.close()

    def __repr__(self) -> str:
        return f"<L7Policy {len(self._ports)} ports, {len(self._sets.rules)} sets of rules>"


def end_connections(conns: maps.Hash[Any, Any]) -> None:
    """Nothing passes any more over the connections that are read now; who tends their pod destroys them."""
    conns.delete_many(list(conns))


#: Maps that are tiny unless they are those of other programs.
_OF_POLICIES = (
    "kd_conntrack",
    "kd_conntrack_to",
    "kd_endpoints",
    "kd_ipcache",
    "kd_networks",
    "kd_policies",
    "kd_rules",
    "kd_rule_counts",
    "kd_talks",
)

_ENDS = (*range(1, 22), HTTPReason.FRAME, HTTPReason.FIELD)
"""Reasons that end a connection."""
_PASSES = 3
"""After a change: its rules may be written behind it, and what is denied has a second to close by itself."""

_ANYTHING = frozenset({HTTPRule()})


def _asked(port: L7Port) -> frozenset[HTTPRule]:
    """What requests have to be there; where nothing is asked, they have to be read all the same."""
    return _ANYTHING if port.rules is None else port.rules


def _by_end(ports: Iterable[L7Port]) -> dict[tuple[IPAddress, int], L7Port]:
    found: dict[tuple[IPAddress, int], L7Port] = {}
    for each in ports:
        if found.setdefault(each.end, each) != each:
            raise ModelError(f"{each} is given twice")
    return found
