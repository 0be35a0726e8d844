"""Asks an observer: ours, Hubble's, or a relay of many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import field, frozen

from k8sdatapath.errors import MissingExtraError, ModelError, SourceError
from k8sdatapath.hubble.convert import from_proto, to_fields
from k8sdatapath.hubble.wire import message
from k8sdatapath.model.agent_event import ToldAgentEvent
from k8sdatapath.model.flow import FlowEvent
from k8sdatapath.model.flow_filter import FlowFilter
from k8sdatapath.resource import Resource

__all__ = ["Asked", "Observed", "Trust"]

_SECOND = 10**9
_ALL = (1 << 64) - 1


def _paths(given: Path | Iterable[Path] | None) -> tuple[Path, ...]:
    return (given,) if isinstance(given, Path) else tuple(given or ())


@frozen(kw_only=True)
class Trust:
    """Whom to trust, and what to prove oneself with.

    :ivar authorities: certificates of those who sign the server's, in a file or several; without any those of
        the system.
    :ivar server_name: the name in its certificate, if it is not that of its address.
    :raises ModelError: a certificate without its key, or a key alone.
    """

    authorities: tuple[Path, ...] = field(default=(), converter=_paths)
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __attrs_post_init__(self) -> None:
        if (self.certificate is None) is not (self.key is None):  # which gRPC ends the process for
            raise ModelError("a client's certificate and its key go together")


@frozen(kw_only=True)
class Asked:
    """Which flows are asked for.

    :ivar number: so many; None is all.
    :ivar first: the oldest of them, not the newest.
    :ivar since: nanoseconds since 1970.
    :ivar fields: paths of the fields that are wanted; none are all.
    """

    allow: tuple[FlowFilter, ...] = ()
    deny: tuple[FlowFilter, ...] = ()
    number: int | None = None
    first: bool = False
    follow: bool = False
    since: int | None = None
    until: int | None = None
    fields: tuple[str, ...] = ()


class Observed(Resource):
    """An observer: ``Observed("localhost:4245").flows(Asked(number=20))``.

    :param address: ``host:port``, ``tls://host:port`` or ``unix:///path``.
    :param trust: with it, or ``tls://``, the server has to prove who it is.
    :param advice: what to do if there is no server.
    :raises MissingExtraError: the extra is not installed.
    """

    def __init__(self, address: str, trust: Trust | None = None, *, advice: str = "") -> None:
        try:
            import grpc
        except ModuleNotFoundError:
            raise MissingExtraError("asking for flows", "hubble") from None
        self._address = address
        self._advice = advice
        target = address.removeprefix("tls://")
        if trust is None and target == address:
            self._channel = grpc.insecure_channel(target)
            return
        trust = trust or Trust()
        signers = b"\n".join(path.read_bytes() for path in trust.authorities) or None
        own = [path and path.read_bytes() for path in (trust.key, trust.certificate)]
        options = [("grpc.ssl_target_name_override", trust.server_name)] if trust.server_name else []
        self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(signers, *own), options)

    def flows(self, asked: Asked) -> Iterator[FlowEvent]:
        """What is told, as it comes.

        :raises ModelError: a number that the protocol has no room for.
        :raises SourceError: the server cannot be reached, or does not want to.
        """
        fields: dict[str, Any] = {
            "whitelist": [to_fields(each) for each in asked.allow],
            "blacklist": [to_fields(each) for each in asked.deny],
            "number": asked.number if asked.number is not None else 0 if asked.follow else _ALL,
            "first": asked.first,
            "follow": asked.follow,
        }
        for name, when in (("since", asked.since), ("until", asked.until)):
            if when is not None:
                fields[name] = {"seconds": when // _SECOND, "nanos": when % _SECOND}
        if asked.fields:
            fields["field_mask"] = {"paths": list(asked.fields)}
        for answer in self._ask("GetFlows", fields, streaming=True):
            yield from_proto(answer, FlowEvent)

    def agent_events(
        self, *, number: int | None = None, follow: bool = False, since: int | None = None
    ) -> Iterator[ToldAgentEvent]:
        """What agents have done, oldest first.

        :param number: the newest so many; None is all that are known, or none if only new ones are followed.
        :param follow: and then what they do.
        :param since: nanoseconds since 1970.
        :raises ModelError: a number that the protocol has no room for.
        :raises SourceError: the server cannot be reached, or does not want to.
        """
        fields: dict[str, Any] = {"number": number if number is not None else 0 if follow else _ALL}
        fields["follow"] = follow
        if since is not None:
            fields["since"] = {"seconds": since // _SECOND, "nanos": since % _SECOND}
        for answer in self._ask("GetAgentEvents", fields, streaming=True):
            yield from_proto(answer, ToldAgentEvent)

    def status(self) -> dict[str, Any]:
        """How full the server's ring is, by the names of the protocol.

        :raises SourceError: the server cannot be reached.
        """
        (answer,) = self._ask("ServerStatus", {}, streaming=False)
        found = {field.name: value for field, value in answer.ListFields()}
        for name in ("num_connected_nodes", "num_unavailable_nodes"):
            if name in found:
                found[name] = found[name].value
        return found

    def namespaces(self) -> list[tuple[str, str]]:
        """Those that flows of the last hour were of, each after its cluster.

        :raises SourceError: the server cannot be reached, or does not know.
        """
        (answer,) = self._ask("GetNamespaces", {}, streaming=False)
        return [(each.cluster, each.namespace) for each in answer.namespaces]

    def nodes(self) -> list[dict[str, Any]]:
        """Those that it knows, by the names of the protocol.

        :raises SourceError: the server cannot be reached, or does not know.
        """
        (answer,) = self._ask("GetNodes", {}, streaming=False)
        return [{field.name: value for field, value in each.ListFields()} for each in answer.nodes]

    def _ask(self, method: str, fields: dict[str, Any], *, streaming: bool) -> Iterable[Any]:
        import grpc

        make = self._channel.unary_stream if streaming else self._channel.unary_unary
        call = make(
            f"/observer.Observer/{method}",
            request_serializer=message(f"observer.{method}Request").SerializeToString,
            response_deserializer=message(f"observer.{method}Response").FromString,
        )
        try:
            request = message(f"observer.{method}Request")(**fields)
        except ValueError as error:  # a number that is too great
            raise ModelError(f"that cannot be asked for: {error}") from None
        try:
            if streaming:
                yield from call(request)
            else:
                yield call(request, timeout=12)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                told = f"{error.code().name}: {error.details()}"
                if error.code() is grpc.StatusCode.UNAVAILABLE and self._advice:
                    told += f" ({self._advice})"
                raise SourceError(f"{self._address} does not tell flows: {told}") from None

    def close(self) -> None:
        """Hang up."""
        self._channel.close()
