"""Masquerader: what pods send to the world leaves under an address of the node."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from typing import Any, TypeVar

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.component import Report
from k8sdatapath.datapath.conntrack_table import ConntrackTable
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.flow import FlowFilter, FlowState, Peer
from k8sdatapath.errors import CapacityError, ModelError, StalePlanError
from k8sdatapath.layout import u32
from k8sdatapath.model import IPAddress, Masquerade, Protocol
from k8sdatapath.model.masquerade import helped
from k8sdatapath.net.netlink import Netlink
from k8sdatapath.net.netns import NetNs
from k8sdatapath.programs.base import device_index
from k8sdatapath.resource import Resource
from k8sdatapath.tables.conntrack import Tuple
from k8sdatapath.tables.masquerade import NONE, ExhaustedRow, MasqDeviceRow, MasqKey, MasqRule, MasqSide

__all__ = ["Exhausted", "Mapping", "MasqueradePlan", "Masquerader"]

CONTRACT = {
    "kd_masq_devices": maps.Hash[u32, MasqDeviceRow],
    "kd_masq_rules": maps.LPMTrie[MasqKey, MasqRule],
    "kd_masq_empty": maps.Array[u32],
    "kd_exhausted": maps.LRUHash[Tuple, ExhaustedRow],
}

_GROUPS = tuple(map(ip_network, ("224.0.0.0/4", "255.255.255.255/32", "ff00::/8")))
#: Good for one link only.
_LINK_LOCAL = {4: ip_network("169.254.0.0/16"), 6: ip_network("fe80::/10")}

T = TypeVar("T")


@frozen
class Mapping:
    """A flow that leaves under another address: ``TCP 10.244.1.2:40000 as 192.0.2.1:40000 -> ...``.

    :ivar pod: the end that the pod has; of an echo the port is its number, as everywhere here.
    :ivar leaves_as: what the remote end sees.
    :ivar protocol: its number.
    :ivar age: seconds since the last packet.
    :ivar packets: of both directions.
    """

    pod: Peer
    leaves_as: Peer
    remote: Peer
    protocol: int
    protocol_name: str
    state: FlowState
    age: int
    packets: int

    @property
    def unsupported(self) -> str:
        """What does not work through it, if its port is that of a protocol which needs a helper."""
        return helped(self.protocol, self.remote.port)

    def __str__(self) -> str:
        return f"{self.protocol_name} {self.pod} as {self.leaves_as} -> {self.remote} {self.state}"


@frozen
class Exhausted:
    """A remote end towards which there was no port for new flows; those that there were have gone on.

    :ivar leaves_as: the address whose ports were all taken there.
    :ivar packets: how many were dropped for it.
    """

    leaves_as: IPAddress
    remote: Peer
    protocol: int
    packets: int


@frozen
class MasqueradePlan:
    """What would change."""

    masquerader: Masquerader
    rules: dict[MasqKey, MasqRule]
    """Rules that are new or different; likewise ``devices``, by index."""
    dropped_rules: tuple[MasqKey, ...]
    devices: dict[int, MasqDeviceRow]
    dropped_devices: tuple[int, ...]
    names: dict[int, str]
    revision: int

    @property
    def empty(self) -> bool:
        """Whether everything is as wanted already."""
        return not (self.rules or self.dropped_rules or self.devices or self.dropped_devices)

    def __str__(self) -> str:
        if self.empty:
            return "nothing to change"
        said = [f"{_said(key)}: {_leaves_as(key, rule)}" for key, rule in self.rules.items()]
        said += [f"- {_said(key)}" for key in self.dropped_rules]
        for index, row in self.devices.items():
            addresses = ", ".join(map(str, row.addresses)) or "dropped, for want of an address"
            said.append(f"pods leave {self.names[index]} as {addresses}")
        said += [f"- device {self.names.get(index, index)}" for index in self.dropped_devices]
        return "\n".join(said)

    def apply(self) -> Report:
        """Carry it out: what is excluded is known before anything is masqueraded.

        Flows that have begun keep the address that they have.

        :raises StalePlanError: something has changed since; nothing was changed.
        """
        return self.masquerader._apply(self)


class Masquerader(Resource):
    """What pods send to the world leaves under an address of the node, and comes back to them.

    ::

        masquerader.plan(Masquerade(devices="eth0", exclude=["10.0.0.0/8"])).apply()
        for mapping in masquerader.mappings():
            print(mapping)

    For programs that were loaded with ``masquerade=True``. Needs no services.
    """

    def __init__(
        self, tables: dict[str, Any], flows: ConntrackTable, own: ExitStack, netns: NetNs | None
    ) -> None:
        self._own = own
        self._flows = flows
        self._netns = netns
        self._devices: maps.Hash[int, MasqDeviceRow] = tables["kd_masq_devices"]
        self._rules: maps.LPMTrie[MasqKey, MasqRule] = tables["kd_masq_rules"]
        self._empty: maps.Array[int] = tables["kd_masq_empty"]
        self._exhausted: maps.LRUHash[Tuple, ExhaustedRow] = tables["kd_exhausted"]
        self._revision = 0

    @classmethod
    def bind(cls, source: Bindable, *, netns: NetNs | None = None) -> Masquerader:
        """Take over what a loaded object, pins or maps hold.

        :param netns: where the devices are; None is the namespace of the calling thread.
        :raises ContractError: the maps are not there.
        """
        tables, own = bind_maps(source, CONTRACT, cls.__name__)
        with ExitStack() as undo:
            undo.push(own)
            flows = undo.enter_context(ConntrackTable.bind(source))
            return cls(tables, flows, undo.pop_all(), netns)

    def plan(self, wanted: Masquerade) -> MasqueradePlan:
        """What to do so that exactly this is so.

        :raises ModelError: no device is named.
        :raises DeviceGoneError: there is no such device.
        :raises CapacityError: there is not enough room.
        """
        if not wanted.devices:
            raise ModelError("masquerade on which devices? None is named")
        strange = wanted.sources.keys() - set(wanted.devices)
        if strange:
            raise ModelError(
                f"source addresses for {', '.join(sorted(strange))}, where nothing is masqueraded"
            )
        links = (each for version, each in _LINK_LOCAL.items() if version not in wanted.link_local)
        excluded = (*_GROUPS, *links, *wanted.exclude)
        rules = {MasqKey.of(MasqSide.DESTINATION, each): MasqRule(NONE) for each in excluded}
        rules |= {MasqKey.of_port(protocol, port): MasqRule(NONE) for protocol, port in wanted.netfilter}
        rules |= {MasqKey.of(MasqSide.SOURCE, each): MasqRule(NONE) for each in wanted.routable}
        rules |= {MasqKey.of(MasqSide.SOURCE, each): MasqRule(to) for each, to in wanted.egress.items()}
        found = self._call(lambda: _look_up(wanted))
        names = {index: name for name, (index, _) in found.items()}
        devices = {index: MasqDeviceRow.of(addresses) for index, addresses in found.values()}
        for table, needed in (self._rules, len(rules)), (self._devices, len(devices)):
            if needed > table.info.max_entries:
                raise CapacityError(table.name, needed, table.info.max_entries)
        has_rules, has_devices = self._standing(), dict(self._devices.items())
        return MasqueradePlan(
            self,
            {key: rule for key, rule in rules.items() if has_rules.get(key) != rule},
            tuple(has_rules.keys() - rules.keys()),
            {index: row for index, row in devices.items() if has_devices.get(index) != row},
            tuple(has_devices.keys() - devices.keys()),
            names,
            self._revision,
        )

    def _apply(self, plan: MasqueradePlan) -> Report:
        if plan.revision != self._revision:
            raise StalePlanError("what is masqueraded has changed since this was planned: plan again")
        self._revision += 1
        started = time.perf_counter()
        if not plan.empty:
            self._flows.complete()  # before there are other rules, which are for new flows
        held = self._standing().keys() | set(self._devices)
        changed = sum(key in held for key in (*plan.rules, *plan.devices))
        self._make_room(plan)
        self._say_empty((*self._rules, *plan.rules))
        self._rules.update_many(plan.rules)
        self._devices.delete_many(plan.dropped_devices)
        self._devices.update_many(plan.devices)
        self._take_back(plan.dropped_rules)
        self._say_empty(self._rules)
        if not plan.empty:
            self._flows.complete()  # those that have begun meanwhile
        added = len(plan.rules) + len(plan.devices) - changed
        removed = len(plan.dropped_rules) + len(plan.dropped_devices)
        return Report(added, changed, removed, time.perf_counter() - started)

    def _standing(self) -> dict[MasqKey, MasqRule]:
        """The rules that were not taken back."""
        return {key: rule for key, rule in self._rules.items() if not rule.until}

    def _say_empty(self, rules: Iterable[MasqKey]) -> None:
        """Which sides none of these is about."""
        held = {key.side for key in rules}
        self._empty[0] = sum(1 << side for side in MasqSide if side not in held)

    def _make_room(self, plan: MasqueradePlan) -> None:
        """There may not be enough for what was taken back, nor for what goes beside what comes."""
        held = dict(self._rules.items())
        standing = {key for key, rule in held.items() if not rule.until}
        room = self._rules.info.max_entries
        if len(held.keys() | plan.rules) > room:
            self._rules.delete_many(held.keys() - standing)
        if len(standing | plan.rules.keys()) > room:
            self._rules.delete_many(plan.dropped_rules)

    def _take_back(self, dropped: Collection[MasqKey]) -> None:
        """Rules are no more, but for connections that they have left as they were: nobody has noted these.

        Where a wider rule is in force, it decides.
        """
        now = int(time.monotonic())
        for_now = MasqRule(NONE, now + self._flows.timeouts.established)
        held = dict(self._rules.items())
        standing = {key for key, rule in held.items() if not rule.until}.difference(dropped)
        lengths = {key.prefixlen for key in standing}
        staying = {key: rule for key, rule in held.items() if rule.until > now}
        staying |= {
            key: for_now for key in dropped if key.side != MasqSide.PORT and held.get(key) == MasqRule(NONE)
        }
        staying = {key: each for key, each in staying.items() if standing.isdisjoint(key.wider(lengths))}
        self._rules.update_many({key: each for key, each in staying.items() if each is for_now})
        self._rules.delete_many([key for key in held if key not in standing and key not in staying])

    def mappings(self) -> Iterator[Mapping]:
        """The flows that leave under another address, each once."""
        for flow in self._flows.flows():
            if flow.mapped:
                yield Mapping(
                    flow.client,
                    flow.seen_as,
                    flow.backend,
                    flow.protocol,
                    flow.protocol_name,
                    flow.state,
                    flow.age,
                    flow.packets,
                )

    def exhausted(self) -> tuple[Exhausted, ...]:
        """Where ports have run out, the worst first; :meth:`forget_exhausted` begins anew."""
        found = [
            Exhausted(key.src, Peer(key.dst, key.dport), key.protocol, row.packets)
            for key, row in self._exhausted.items()
            if row.packets
        ]
        return tuple(sorted(found, key=lambda each: -each.packets))

    def forget_exhausted(self) -> None:
        """Count from nothing again."""
        self._exhausted.delete_many(list(self._exhausted))

    def flush(self, pod: IPAddress | None = None) -> int:
        """Forget mappings; returns how many.

        What comes after begins new ones, under its own port if that is free.

        :param pod: only those of this address.
        """
        pods = {mapping.pod.address for mapping in self.mappings() if pod in (None, mapping.pod.address)}
        return sum(self._flows.flush(FlowFilter(client=each, mapped=True)) for each in pods)

    def _call(self, function: Callable[[], T]) -> T:
        return function() if self._netns is None else self._netns.call(function)

    def close(self) -> None:
        """Let go of the maps; packets go on as they do."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<Masquerader {len(self._devices)} devices, {len(self._rules)} rules>"


def _look_up(wanted: Masquerade) -> dict[str, tuple[int, tuple[IPAddress, ...]]]:
    """Each device's index, and the addresses to leave it under."""
    with Netlink() as net:
        return {
            name: (device_index(name), wanted.sources.get(name) or net.source_addresses(name))
            for name in wanted.devices
        }


def _said(key: MasqKey) -> str:
    if key.side == MasqSide.PORT:
        protocol, port = key.port
        return f"to port {port}/{Protocol(protocol).name}"
    return f"{'to' if key.side == MasqSide.DESTINATION else 'from'} {key.network}"


def _leaves_as(key: MasqKey, rule: MasqRule) -> str:
    if key.side == MasqSide.PORT:
        return "left to netfilter"
    return "as itself" if rule.leaves_as == NONE else f"as {rule.leaves_as}"
