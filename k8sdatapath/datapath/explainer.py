"""Explainer: what would become of a packet, by running the programs that decide, and nothing is changed.

The programs of pods and uplinks are loaded once more, from the same source but telling their steps, each when
it is first asked about. They share the live maps that they only read: services, backends, pods. Flows and
affinity, which they write, are their own, and begin empty with every question. Whatever a run asks for and
the live tables have is copied, and the packet is run again, until nothing that it asks for is missing: then
the answer is that of the live tables.

What chance decides (random selection, a port when the client's own is taken) may come out otherwise for the
next packet. Rejections are explained as if there were no limit to them, and later fragments as if their first
had not been seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from ipaddress import IPv6Address
from threading import Lock
from typing import Any

from attrs import frozen

from k8sdatapath import maps, programs
from k8sdatapath.datapath.contract import Bindable, bind_maps, names_of
from k8sdatapath.datapath.explanation import Explanation, Place, Step, told
from k8sdatapath.datapath.identity_policy import CONTRACT as _POLICIES
from k8sdatapath.datapath.judgement import judgement
from k8sdatapath.datapath.masquerader import CONTRACT as MASQUERADE
from k8sdatapath.datapath.policy_view import PolicyView
from k8sdatapath.datapath.service_table import CONTRACT as SERVICES
from k8sdatapath.errors import ModelError
from k8sdatapath.layout import addr, layout_of, u32
from k8sdatapath.model import Frontend, IPAddress, Protocol, address
from k8sdatapath.model.address import shown
from k8sdatapath.model.identity import Reserved
from k8sdatapath.model.masquerade import helped
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import Packet, parse, tcp, udp
from k8sdatapath.net.rtnetlink import Rtnetlink
from k8sdatapath.objects import ConfigValue, ObjectSpec, live_config
from k8sdatapath.pins import PinDir
from k8sdatapath.programs.base import device_index, in_netns
from k8sdatapath.resource import Resource
from k8sdatapath.tables.affinity import AffinityKey, AffinityRow
from k8sdatapath.tables.begun import BegunPair, find
from k8sdatapath.tables.conntrack import ConntrackRow, Tuple
from k8sdatapath.tables.counters import Outcome, outcomes
from k8sdatapath.tables.endpoints import EndpointRow
from k8sdatapath.tables.peers import PeerKey, PeerRow
from k8sdatapath.tables.pod_networks import PodNetworkRow
from k8sdatapath.tables.trace import NetnsClient, SkbContext, StepKind, TracedRow, XdpContext

__all__ = ["CONTRACT", "Device", "Explainer"]

_MASQUERADE = {name: MASQUERADE[name] for name in ("kd_masq_devices", "kd_masq_rules")}

#: The maps that an explainer reads.
CONTRACT: Mapping[str, Any] = {
    **SERVICES,
    **_MASQUERADE,
    **_POLICIES,
    "kd_endpoints": maps.Hash[addr, EndpointRow],
    "kd_pod_networks": maps.Array[PodNetworkRow],
    "kd_peers": maps.LPMTrie[PeerKey, PeerRow],
    "kd_conntrack": maps.LRUHash[Tuple, ConntrackRow],
    "kd_affinity": maps.LRUHash[AffinityKey, AffinityRow],
}

# Of a datapath that programs write to.
_WRITTEN = {"kd_begun": maps.Array[BegunPair]}

_SHARED = (*SERVICES, *_MASQUERADE, *_POLICIES, "kd_endpoints", "kd_pod_networks", "kd_peers")
_ENTRIES = {
    Place.POD: "from_pod",
    Place.UPLINK: "from_uplink",
    Place.SOCKET: "from_socket",
    Place.TO_POD: "to_pod",
    Place.TO_UPLINK: "to_uplink",
    Place.XDP: "xdp_in",
}
_PASS = 1  # KD_PASS, which not every program counts
_RUNS = 16
_ANOTHER = 0x7FFFFFFF  # a device that is no pod's
_SMALL = 1024
_TOLD = ("redirect", "service_ipv4", "service_ipv6", "tunnel_device")


@frozen
class Device:
    """What a packet comes in through.

    :ivar index: its number in its namespace.
    :ivar mac: its link address, which packets to it have.
    """

    index: int
    mac: str

    @classmethod
    def find(cls, name: str) -> Device:
        """The device of this name in the calling thread's namespace.

        :raises DeviceGoneError: there is none.
        """
        return cls.of_index(device_index(name))

    @classmethod
    def of_index(cls, index: int) -> Device:
        """The device with this number in the calling thread's namespace, which has it."""
        with Rtnetlink() as net:
            return next(cls(link.index, link.mac) for link in net.links() if link.index == index)


def _unsupported(packet: Packet, outcome: Outcome) -> Iterator[Step]:
    """What would not work if it left under another address."""
    name = helped(packet.protocol, packet.dport or 0)
    if name and outcome.name in ("PASS", "TO_DEVICE", "TO_STACK"):
        yield Step(
            "unsupported",
            f"{name} needs a helper where pods leave under another address, and there is none: its port "
            f"{packet.dport} can be left to netfilter (Masquerade.netfilter).",
        )


class Explainer(Resource):
    """Says what becomes of packets. Make one with :meth:`bind`; its methods may be called from any thread."""

    def __init__(
        self, live: Mapping[str, Any], spec: ObjectSpec, netns: NetNs | None, own: ExitStack
    ) -> None:
        shared = {name: live[name] for name in _SHARED}
        self._loaded = loaded = own.enter_context(spec.load(reuse=shared, programs=()))
        self._live = live
        self._begun: maps.Array[BegunPair] | None = live.get("kd_begun")
        self._policies = PolicyView(live, ExitStack())
        self._netns = netns
        self._own = own
        self._lock = Lock()
        self._flows = loaded.map("kd_conntrack", CONTRACT["kd_conntrack"])
        self._affinity = loaded.map("kd_affinity", CONTRACT["kd_affinity"])
        self._remembered = [
            loaded.map(name, maps.LRUHash)
            for name, found in spec.maps.items()
            if found.type == maps.LRUHash.TYPE and name not in shared
        ]
        self._trace = loaded.map("kd_trace", maps.Array[TracedRow])
        self._count = loaded.map("kd_trace_count", maps.Array[u32])
        self._programs: dict[Place, programs.Program] = {}
        self._outcomes = {outcome.number: outcome for outcome in outcomes(spec.btf)}

    @classmethod
    def bind(
        cls,
        source: Bindable,
        *,
        netns: NetNs | None = None,
        config: Mapping[str, ConfigValue] | None = None,
    ) -> Explainer:
        """An explainer of the datapath whose maps an object, a pin directory or a mapping has.

        :param netns: of the node; None is that of the calling thread.
        :param config: constants that the live programs were loaded with, where pins do not tell. Without
            ``masquerade`` they do so if there is a device for it, and without ``enforce`` they do so if it is
            known who anybody is.
        :raises ContractError: a map is missing.
        :raises LayoutError: a map holds something else.
        """
        written = {name: kind for name, kind in _WRITTEN.items() if name in names_of(source)[1]}
        live, owned = bind_maps(source, {**CONTRACT, **written}, "an explainer")
        with ExitStack() as undo:
            undo.enter_context(owned)
            spec = ObjectSpec.from_file("explain")
            told_them: dict[str, ConfigValue] = {
                "masquerade": bool(len(live["kd_masq_devices"])),
                "enforce": next(iter(live["kd_ipcache"]), None) is not None,
                "host_firewall": any(row.table for row in [*live["kd_policies"]][2:4]),
            }
            if isinstance(source, PinDir):
                told_them |= _told(source)
            told_them |= config or {}
            known = {name: value for name, value in told_them.items() if name in spec.config}
            sizes = {name: live[name].info.max_entries for name in _SHARED}
            private = {
                name: min(found.max_entries, _SMALL)
                for name, found in spec.maps.items()
                if name not in sizes and found.key_size  # a ring has none, and counts bytes
            }
            spec = spec.with_config(**known).with_maps(**sizes, **private)
            return cls(live, spec, netns, undo.pop_all())

    def explain(
        self, frame: bytes, at: Place = Place.POD, *, device: Device | None = None, cookie: int = 0
    ) -> Explanation:
        """What becomes of a packet.

        Of what a pod sends to a port of a protocol that needs a helper, a step ``unsupported`` says so.

        :param frame: from its Ethernet header on; it is taken to be addressed to the device.
        :param device: that it comes in through, or goes out of. By default that of the pod which sends it, or
            gets it, if there is one; else none, and only routes and masquerading know the difference.
        :param cookie: of the network namespace of the process that dials, for ``Place.SOCKET``.

        At ``Place.TO_UPLINK``, what has the address of a pod of this node is taken to have come from it, and
        all else from the node itself.
        """
        packet = parse(frame)
        sender = self.pod_device(packet.src)
        if device is None and at in (Place.POD, Place.TO_POD):
            device = sender if at is Place.POD else self.pod_device(packet.dst)
        if at is not Place.TO_UPLINK:  # where the route has given it an address already
            frame = (bytes.fromhex(device.mac.replace(":", "")) if device else bytes(6)) + frame[6:]
        index = device.index if device else 0
        if at is Place.XDP:
            context = layout_of(XdpContext).pack(XdpContext(len(frame), index))
        else:
            forwarded = sender.index if sender and at is Place.TO_UPLINK else 0
            if at is Place.TO_POD and not self._is_own(packet.src):
                forwarded = _ANOTHER
            context = layout_of(SkbContext).pack(SkbContext(forwarded, index, cookie))
        with self._lock:
            left, rows = self._run(self._program(at), frame, context, packet.src, cookie, at)
        judged = {id(row): judgement(row, self._policies) for row in rows if row.step == StepKind.POLICY}
        steps = tuple(told(rows, at, self._outcomes, lambda row: judged[id(row)]))
        told_last = rows[-1].value if rows and rows[-1].step == StepKind.RESULT else _PASS
        outcome = self._outcomes[told_last]
        steps += tuple(_unsupported(packet, outcome)) if at in (Place.POD, Place.TO_UPLINK) else ()
        answer = None if outcome.drop else parse(left)
        return Explanation(at, steps, outcome, packet, answer, tuple(judged.values()))

    def _is_own(self, address: IPAddress) -> bool:
        """Whether the node itself sends under an address: supposed where no policies are enforced."""
        known = self._live["kd_ipcache"]
        party = known.get(address)
        return next(iter(known), None) is None or (party is not None and party.identity == Reserved.HOST)

    def pod_device(self, address: IPAddress) -> Device | None:
        """The device of the pod with an address, if one has."""
        pod = self._live["kd_endpoints"].get(address)
        return None if pod is None else Device(pod.ifindex, pod.host_mac)

    def masquerades(self, device: Device) -> bool:
        """Whether pods leave under other addresses through a device."""
        return device.index in self._live["kd_masq_devices"]

    def dial(
        self,
        dialled: Frontend,
        source: IPAddress,
        at: Place = Place.POD,
        *,
        port: int = 40000,
        device: Device | None = None,
        cookie: int = 0,
    ) -> Explanation:
        """What becomes of the first packet to ``dialled``: a SYN, or a datagram. The rest as :meth:`explain`.

        :param port: of the source.
        :raises ModelError: the two are not of one family, or it is neither TCP nor UDP.
        """
        if not isinstance(dialled, Frontend):
            raise ModelError(f"{shown(dialled)} is not a Frontend: Frontend.parse makes one of a text")
        if dialled.protocol not in (Protocol.TCP, Protocol.UDP):
            raise ModelError(f"{dialled}: first packets are made of TCP and UDP; explain() takes any frame")
        ends = source, dialled.address, port, dialled.port
        frame = udp(*ends, b"?") if dialled.protocol is Protocol.UDP else tcp(*ends)
        return self.explain(frame, at, device=device, cookie=cookie)

    def verdict(
        self,
        source: IPAddress | str,
        destination: IPAddress | str,
        port: int,
        protocol: Protocol = Protocol.TCP,
    ) -> Explanation:
        """What the policies of this node's pods say of a new connection between two addresses.

        It is asked where it leaves its pod, which is also for a receiver on this node; if only the receiver
        is, there. :attr:`Explanation.judgements` is what they say.

        :raises ModelError: neither is a pod of this node.
        """
        source, destination = address(source), address(destination)
        here = [
            place for place, end in ((Place.POD, source), (Place.TO_POD, destination)) if self.pod_device(end)
        ]
        if not here:
            raise ModelError(f"neither {source} nor {destination} is a pod of this node")
        return self.dial(Frontend(destination, port, protocol), source, here[0])

    def _program(self, at: Place) -> programs.Program:
        if at not in self._programs:
            entry = _ENTRIES[at]
            self._loaded.load_programs(entry)
            self._programs[at] = self._loaded.program(entry, programs.XDP if at is Place.XDP else programs.TC)
        return self._programs[at]

    def _run(
        self,
        program: programs.Program,
        frame: bytes,
        context: bytes,
        client: IPAddress,
        cookie: int,
        at: Place,
    ) -> tuple[bytes, list[TracedRow]]:
        """Run it until it has asked for nothing more that the live tables have."""
        flows: dict[Tuple, ConntrackRow] = {}
        pins: dict[AffinityKey, AffinityRow] = {}
        asked: set[Tuple | AffinityKey] = set()
        for _ in range(_RUNS):
            self._fill(flows, pins)
            result = in_netns(self._netns, lambda: program.run(frame, ctx=context))
            rows = [self._trace[index] for index in range(self._count[0])]
            news = _asked_for(rows, _client(client, cookie, at)) - asked
            asked |= news
            copied = len(flows) + len(pins)
            for key in news:
                if isinstance(key, AffinityKey):
                    if (pin := self._live["kd_affinity"].get(key)) is not None:
                        pins[key] = pin
                else:
                    flows |= self._flow(key)
            if len(flows) + len(pins) == copied:
                break
        return result.data, rows

    def _flow(self, key: Tuple) -> dict[Tuple, ConntrackRow]:
        """The live flow that has this tuple: both its halves, as far as they are there."""
        live = self._live["kd_conntrack"]
        found: dict[Tuple, ConntrackRow] = {}
        if self._begun is not None and key not in live and (row := find(self._begun.view(), key)) is not None:
            found[key] = row
            key = Tuple(row.to.dst, row.to.src, row.to.dport, row.to.sport, row.to.protocol)
        while key not in found and (row := live.get(key)) is not None:
            found[key] = row
            key = Tuple(row.to.dst, row.to.src, row.to.dport, row.to.sport, row.to.protocol)
        return found

    def _fill(self, flows: Mapping[Tuple, ConntrackRow], pins: Mapping[AffinityKey, AffinityRow]) -> None:
        for each in self._remembered:
            each.clear()
        self._flows.update_many(flows)
        self._affinity.update_many(pins)
        self._count[0] = 0

    def close(self) -> None:
        """Let go of the programs and maps."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<Explainer {self._live['kd_frontends']!r}>"


def _told(pins: PinDir) -> dict[str, ConfigValue]:
    """Of what the live programs were told, that which maps do not say; nothing if none is attached."""
    for name in pins.links:
        with pins.open_link(name) as link:
            found = live_config(link)
        if "redirect" in found:
            return {each: found[each] for each in _TOLD if each in found}
    return {}


def _client(source: IPAddress, cookie: int, at: Place) -> AffinityKey:
    """Who a client of a service with affinity is, with the service still to be filled in."""
    if at is not Place.SOCKET:
        return AffinityKey(source, 0, 0)
    return AffinityKey(IPv6Address(layout_of(NetnsClient).pack(NetnsClient(cookie))), 0, 1)


def _asked_for(rows: list[TracedRow], client: AffinityKey) -> set[Tuple | AffinityKey]:
    found: set[Tuple | AffinityKey] = set()
    for row in rows:
        ends = row.tuple
        if row.step == StepKind.LOOKUP:
            found.add(ends)
        elif row.step == StepKind.NEW_FLOW:
            found.add(Tuple(ends.dst, ends.src, ends.dport, ends.sport, ends.protocol))
        elif row.step == StepKind.AFFINITY:
            found.add(AffinityKey(client.client, row.more, client.netns))
    return found
