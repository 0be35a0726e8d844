"""The answers to Hubble's clients: what is asked, from which ring it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count, islice
from typing import Any

from k8sdatapath.errors import ClosedError, MissingExtraError, ModelError
from k8sdatapath.flow_source import FlowCursor, FlowSource
from k8sdatapath.hubble.agent_events import AgentEvents, TimedEvent
from k8sdatapath.hubble.convert import field_mask, from_proto, response, to_fields
from k8sdatapath.hubble.peers import Peers
from k8sdatapath.hubble.wire import message
from k8sdatapath.model.flow import Flow
from k8sdatapath.model.flow_filter import FlowFilter
from k8sdatapath.model.flow_match import Matcher, matcher

__all__ = ["Observer"]

_VERSION = f"k8sdatapath v{version('k8sdatapath')}"
_SECOND = 10**9
_HOUR = 3600 * _SECOND
_ALL = 1 << 63
"""So many and more are all: clients send the greatest number there is."""
_LOOK = 1.0
"""Seconds after which a stream looks whether its client is still there."""
_ASKED = 64
"""Flows held against a filter, after which it is looked whether its client is still there."""
HEALTHY = ("", "hubble.server.Observer", "observer.Observer")


class Observer:
    """All methods of the services, by what they are asked.

    :param node: ``cluster/node``, where this is.
    :param streams: how many clients may follow at once; more are told to come back later.
    """

    def __init__(
        self, source: FlowSource, *, node: str, streams: int, events: AgentEvents, peers: Peers
    ) -> None:
        self._source = source
        self._node = node
        self._events = events
        self._peers = peers
        self._places = threading.BoundedSemaphore(streams)
        self._streams = streams
        self._started = time.monotonic_ns()
        self._namespaces = _Namespaces(source)

    # -- flows --------------------------------------------------------------------------------------

    def flows(self, request: Any, context: Any) -> Iterator[Any]:
        """Flows that match, as :meth:`FlowSource.cursor` reads them."""
        with self._stream(context):
            try:
                mask = field_mask(request.field_mask.paths) if request.HasField("field_mask") else None
                cursor = self._cursor(request, context)
            except _ClientGoneError:
                return
            except (ModelError, MissingExtraError) as error:
                _refuse(context, "INVALID_ARGUMENT", str(error))
            context.send_initial_metadata(())  # clients wait for it, and flows may take their time
            try:
                while context.is_active() and not cursor.over:
                    for item in cursor.take(_LOOK):
                        yield response(item, self._node, mask)
            except _ClientGoneError:
                return
            except ClosedError as error:
                _refuse(context, "UNAVAILABLE", str(error))

    def _cursor(self, request: Any, context: Any) -> FlowCursor:
        if request.first and request.follow:
            raise ModelError("first cannot be specified with follow")
        allow = (from_proto(each, FlowFilter) for each in islice(request.whitelist, 1000))
        deny = (from_proto(each, FlowFilter) for each in islice(request.blacklist, 1000))
        matches = _while_active(matcher(allow, deny), context)
        number = request.number if 0 < request.number < _ALL else None
        since, until = _nanoseconds(request, "since"), _nanoseconds(request, "until")
        oldest, end = self._source.span()
        if request.first and since is None:
            start = oldest
        elif request.follow and not request.number and since is None:
            start = end
        else:
            start = self._source.position(number, matches=matches, since=since, end=end)
        return self._source.cursor(
            start,
            end=None if request.follow else end,
            matches=matches,
            until=until,
            limit=None if request.follow else number,
        )

    @contextmanager
    def _stream(self, context: Any) -> Iterator[None]:
        """A place among those who are answered at length."""
        if not self._places.acquire(blocking=False):
            text = f"{self._streams} clients are served already, come back later"
            _refuse(context, "RESOURCE_EXHAUSTED", text)
        try:
            yield
        finally:
            self._places.release()

    # -- what agents do, debugging ------------------------------------------------------------------

    def agent_events(self, request: Any, context: Any) -> Iterator[Any]:
        """What the agent has done, and does."""
        with self._stream(context):
            if request.first and request.follow:
                _refuse(context, "INVALID_ARGUMENT", "first cannot be specified with follow")
            since, until = _nanoseconds(request, "since"), _nanoseconds(request, "until")
            known = self._events.all()
            context.send_initial_metadata(())
            told = [
                each
                for each in known
                if (since is None or each.time >= since) and (until is None or each.time <= until)
            ]
            number = request.number if 0 < request.number < _ALL else len(told)
            if request.follow and not request.number and since is None:
                number = 0
            first = request.first or since is not None
            for each in told[:number] if first else told[len(told) - min(number, len(told)) :]:
                yield self._agent_event(each)
            last = known[-1].number if known else -1
            while request.follow and context.is_active():
                for each in self._events.after(last, _LOOK):
                    last = each.number
                    if until is not None and each.time > until:
                        return
                    yield self._agent_event(each)

    def _agent_event(self, told: TimedEvent) -> Any:
        return message("observer.GetAgentEventsResponse")(
            agent_event=to_fields(told.event),
            node_name=self._node,
            time={"seconds": told.time // _SECOND, "nanos": told.time % _SECOND},
        )

    def debug_events(self, request: Any, context: Any) -> Iterator[Any]:
        """None: the datapath has other means, see ``explain``. Who follows waits."""
        with self._stream(context):
            context.send_initial_metadata(())
            while request.follow and context.is_active():
                time.sleep(_LOOK)
            yield from ()

    # -- who and how --------------------------------------------------------------------------------

    def status(self, request: Any, context: Any) -> Any:
        """How full the ring is, how fast it fills, since when."""
        oldest, end = self._source.span()
        return message("observer.ServerStatusResponse")(
            num_flows=end - oldest,
            max_flows=self._source.capacity,
            seen_flows=end,
            uptime_ns=self._uptime,
            version=_VERSION,
            flows_rate=self._source.rate(),
        )

    @property
    def _uptime(self) -> int:
        return time.monotonic_ns() - self._started

    def nodes(self, request: Any, context: Any) -> Any:
        """This one. A relay would tell all."""
        oldest, end = self._source.span()
        itself = {
            "name": self._node,
            "version": _VERSION,
            "state": 1,
            "uptime_ns": self._uptime,
            "num_flows": end - oldest,
            "max_flows": self._source.capacity,
            "seen_flows": end,
        }
        return message("observer.GetNodesResponse")(nodes=[itself])

    def namespaces(self, request: Any, context: Any) -> Any:
        """Those that flows of the last hour were of."""
        found = [{"cluster": cluster, "namespace": name} for cluster, name in self._namespaces.seen()]
        return message("observer.GetNamespacesResponse")(namespaces=found)

    def peers(self, request: Any, context: Any) -> Iterator[Any]:
        """Who else observes: all, and then what changes."""
        notification = message("peer.ChangeNotification")
        with self._stream(context):
            context.send_initial_metadata(())
            for changes in self._peers.changes(_LOOK):
                for change in changes:
                    peer = change.peer
                    tls = {"server_name": peer.tls_name} if peer.tls_name else None
                    yield notification(name=peer.name, address=peer.address, type=change.kind, tls=tls)
                if not context.is_active():
                    return

    def health(self, request: Any, context: Any) -> Any:
        """That it is there, for each name it goes by."""
        if request.service not in HEALTHY:
            _refuse(context, "NOT_FOUND", "there is no such service")
        return message("grpc.health.v1.HealthCheckResponse")(status=1)

    @property
    def methods(self) -> dict[str, dict[str, Callable[[Any, Any], Any]]]:
        """By service and method."""
        return {
            "observer.Observer": {
                "GetFlows": self.flows,
                "GetAgentEvents": self.agent_events,
                "GetDebugEvents": self.debug_events,
                "GetNodes": self.nodes,
                "GetNamespaces": self.namespaces,
                "ServerStatus": self.status,
            },
            "peer.Peer": {"Notify": self.peers},
            "grpc.health.v1.Health": {"Check": self.health},
        }


class _ClientGoneError(Exception):
    """Nobody waits for an answer."""


def _while_active(matches: Matcher, context: Any) -> Matcher:
    """The same, as long as the client is there: a ring may be long, and a filter slow."""
    asked = count(1)

    def tested(flow: Flow) -> bool:
        if not next(asked) % _ASKED and not context.is_active():
            raise _ClientGoneError
        return matches(flow)

    return tested


class _Namespaces:
    """Namespaces by when a flow was last of them; each flow is looked at once."""

    def __init__(self, source: FlowSource) -> None:
        self._source = source
        self._seen: dict[tuple[str, str], int] = {}
        self._next = 0
        self._lock = threading.Lock()

    def seen(self) -> list[tuple[str, str]]:
        """Cluster and name, sorted."""
        with self._lock:
            cursor = self._source.cursor(self._next, end=self._source.span()[1])
            for item in cursor.drain():
                if isinstance(item, Flow):
                    for end in (item.source, item.destination):
                        if end is not None and end.namespace:
                            self._seen[end.cluster_name, end.namespace] = item.time
            self._next = cursor.position
            oldest = time.time_ns() - _HOUR
            self._seen = {key: when for key, when in self._seen.items() if when >= oldest}
            return sorted(self._seen)


def _nanoseconds(request: Any, name: str) -> int | None:
    if not request.HasField(name):
        return None
    given = getattr(request, name)
    return int(given.seconds * _SECOND + given.nanos)


def _refuse(context: Any, code: str, text: str) -> None:
    import grpc

    context.abort(getattr(grpc.StatusCode, code), text)
