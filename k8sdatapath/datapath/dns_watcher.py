"""DnsWatcher: what pods ask name servers, and what they are answered, as it passes.

A thread takes the messages out of the kernel's ring buffer, of TCP the bytes that they are in. An answer
counts if the very pod that it goes to has asked for it: the same server and ports, the same number, the same
name and type. All else is ignored, and counted. Policies have let both pass before they are here, and the
kernel has seen that the pod began.
"""

from __future__ import annotations

import os
import select
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.datapath.dns_event import DnsEvent
from k8sdatapath.datapath.dns_streams import DnsStreams
from k8sdatapath.errors import DatapathError, ModelError
from k8sdatapath.model import IPAddress, Protocol
from k8sdatapath.net.dns_message import DnsMessage, first_of
from k8sdatapath.resource import Resource
from k8sdatapath.tables.dns import HEAD, DnsFlags, DnsHeadRow, DnsToldRow

__all__ = ["CONTRACT", "DnsAnswer", "DnsStats", "DnsWatcher"]

#: The maps that a watcher reads.
CONTRACT = {
    "kd_dns": maps.RingBuffer[bytes],
    "kd_dns_told": maps.PerCpuArray[DnsToldRow],
}

_MOST_OPEN = 16384
"""Questions that an answer is waited for at once; of more the oldest are forgotten."""
_PATIENCE = 30.0
"""Seconds after which an answer comes too late."""

_Question: TypeAlias = tuple[Protocol, IPAddress, int, IPAddress, int, int, str, int]


@frozen(kw_only=True)
class DnsAnswer:
    """What a pod was answered.

    :ivar asker: the pod's address and port; likewise ``server``, which is never a service's.
    :ivar message: the answer.
    :ivar time: seconds of the monotonic clock.
    :ivar latency: seconds since it was asked.
    """

    asker: tuple[IPAddress, int]
    server: tuple[IPAddress, int]
    message: DnsMessage
    time: float
    latency: float


@frozen(kw_only=True)
class DnsStats:
    """What was seen so far.

    :ivar questions: that pods have asked.
    :ivar denied: those among them that went nowhere, as policies do not allow their name.
    :ivar answers: to them.
    :ivar strange: answers that nobody has asked for, or too long ago.
    :ivar malformed: messages that are none.
    :ivar failed: answers that could not be made use of, see :attr:`DnsWatcher.error`.
    :ivar lost: messages that found no room, as they came too fast; of TCP segments.
    :ivar skipped: datagrams in pieces, or longer than 4,096 bytes.
    """

    questions: int
    denied: int
    answers: int
    strange: int
    malformed: int
    failed: int
    lost: int
    skipped: int


class DnsWatcher(Resource):
    """Reads what pods of a node ask name servers, and what they are answered::

        watcher = DnsWatcher.bind(loaded, lambda answer: print(answer.message.name, answer.message.addresses))

    :ivar error: why the last answer that failed could not be made use of.
    """

    def __init__(
        self,
        tables: dict[str, Any],
        own: ExitStack,
        on_answer: Callable[[DnsAnswer], object],
        on_event: Callable[[DnsEvent], object],
    ) -> None:
        self.error: DatapathError | None = None
        self._own, self._on_answer, self._on_event = own, on_answer, on_event
        self._ring: maps.RingBuffer[bytes] = tables["kd_dns"]
        self._told: maps.PerCpuArray[DnsToldRow] = tables["kd_dns_told"]
        self._streams = DnsStreams()
        self._open: OrderedDict[_Question, float] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._closing = False
        self._stop, self._stopped = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="dns watcher", daemon=True)
        self._thread.start()

    @classmethod
    def bind(
        cls,
        source: Bindable,
        on_answer: Callable[[DnsAnswer], object],
        *,
        on_event: Callable[[DnsEvent], object] = lambda event: None,
    ) -> DnsWatcher:
        """Watch the messages of a loaded object or of pins. The object may be closed before it.

        Messages are taken by whoever comes first: there is one watcher at a time.

        :param on_answer: is told of each answer, in a thread of the watcher's; what it raises of ours is
            counted.
        :param on_event: is told of each question, and of each answer to one; it raises nothing.
        :raises ContractError: the maps are not there.
        :raises LayoutError: one holds something else.
        """
        tables, own = bind_maps(source, CONTRACT, cls.__name__, keep=True)
        return cls(tables, own, on_answer, on_event)

    @property
    def stats(self) -> DnsStats:
        """What was seen so far, since the programs were loaded."""
        rows, counts = self._told[0], self._counts
        return DnsStats(
            questions=counts["questions"],
            denied=counts["denied"],
            answers=counts["answers"],
            strange=counts["strange"],
            malformed=counts["malformed"],
            failed=counts["failed"],
            lost=sum(row.full for row in rows),
            skipped=sum(row.skipped for row in rows),
        )

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._ring.fileno(), select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while not self._closing:
            poll.poll()
            for record in self._ring.drain() if not self._closing else ():
                self._take(record)

    def _take(self, record: bytes) -> None:
        head: DnsHeadRow = HEAD.unpack(record[: HEAD.size])
        data = record[HEAD.size : HEAD.size + head.length]
        if head.way.protocol == Protocol.UDP:
            self._read(head, data)
        elif _verdict(DnsFlags(head.flags)) == "denied":  # it is no part of the connection
            self._read(head, first_of(data))
        else:
            for each in self._streams.take(head, data):
                self._read(head, each)

    def _read(self, head: DnsHeadRow, data: bytes) -> None:
        try:
            message = DnsMessage.parse(data)
        except ModelError:
            self._counts["malformed"] += 1
            return
        way, now = head.way, head.time / 1e9
        flags = DnsFlags(head.flags)
        held, protocol = bool(flags & DnsFlags.HELD), Protocol(way.protocol)
        if not message.answer and flags & DnsFlags.SENT:
            asked_of = (way.src, way.sport), (way.dst, way.dport)
            verdict = _verdict(flags)
            self._on_event(
                DnsEvent(
                    time=now,
                    client=asked_of[0],
                    server=asked_of[1],
                    verdict=verdict,
                    held=held,
                    protocol=protocol,
                    message=message,
                )
            )
            self._counts["questions"] += 1
            if verdict == "denied":
                self._counts["denied"] += 1
            else:
                self._asked(
                    (protocol, *asked_of[0], *asked_of[1], message.id, message.name, message.type), now
                )
            return
        asked = None
        if message.answer and flags & DnsFlags.ANSWERS:
            ends = way.dst, way.dport, way.src, way.sport
            asked = self._open.pop((protocol, *ends, message.id, message.name, message.type), None)
        if asked is None or now - asked > _PATIENCE:
            self._counts["strange"] += 1
            return
        self._counts["answers"] += 1
        found = DnsAnswer(
            asker=(way.dst, way.dport),
            server=(way.src, way.sport),
            message=message,
            time=now,
            latency=now - asked,
        )
        self._on_event(
            DnsEvent(
                time=now,
                client=found.asker,
                server=found.server,
                verdict="answer",
                held=held,
                protocol=protocol,
                message=message,
                latency=found.latency,
            )
        )
        try:
            self._on_answer(found)
        except DatapathError as error:
            self._counts["failed"] += 1
            self.error = error

    def _asked(self, question: _Question, now: float) -> None:
        self._open.pop(question, None)
        self._open[question] = now
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)

    def close(self) -> None:
        """Watch no more; does nothing the second time."""
        if self._closing:
            return
        self._closing = True
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._own.close()

    def __repr__(self) -> str:
        state = "closed" if self._closing else f"{self._counts['answers']} answers"
        return f"<DnsWatcher {state}>"


def _verdict(flags: DnsFlags) -> str:
    if not flags & DnsFlags.DENIED:
        return "allowed"
    return "audited" if flags & DnsFlags.AUDITED else "denied"
