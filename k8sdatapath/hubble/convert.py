"""Our values as messages of Protocol Buffers, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from k8sdatapath.errors import ModelError
from k8sdatapath.hubble.wire import message
from k8sdatapath.model.address import shown
from k8sdatapath.model.flow import Flow, LostEvent, NodeStatus
from k8sdatapath.model.message import Encoder, Kind, Message, Part, parts, placed

__all__ = ["Mask", "field_mask", "from_proto", "response", "to_fields"]

M = TypeVar("M", bound=Message)

Mask: TypeAlias = Mapping[str, "Mask"]
"""Names of fields, with the names within them that are wanted; none within are all."""

_SECOND = 10**9
_DEPTH = 8
"""Of messages in messages, no path goes deeper."""


def to_fields(value: Message, only: Mask | None = None) -> dict[str, Any]:
    """The fields of a value, as the constructor of its message takes them.

    :param only: these, all if there are none; only of a message whose fields are not one of several.
    """
    found: dict[str, Any] = {}
    for attribute, name, optional, encode in _plan(type(value)):
        if only and name not in only:
            continue
        content = getattr(value, attribute)
        if content or (optional and content is not None):
            encode(found, name, content)
    if isinstance(value, Flow):  # two fields that Hubble keeps for old clients
        if value.drop_reason:
            found["drop_reason"] = value.drop_reason
        if value.is_reply:
            found["reply"] = True
    return _pruned(found, only) if only else found


def _pruned(fields: dict[str, Any], only: Mask) -> dict[str, Any]:
    return {
        name: _pruned(value, only[name]) if only[name] and isinstance(value, dict) else value
        for name, value in fields.items()
        if name in only
    }


def response(item: Flow | LostEvent | NodeStatus, node: str, only: Mask | None = None) -> Any:
    """The answer that tells an item.

    :param node: where it was seen, if it does not say so itself.
    :param only: fields of flows that are wanted. Time and node are told in any case.
    """
    answer = message("observer.GetFlowsResponse")
    if isinstance(item, Flow):
        time = _time(item.time)
        return answer(flow=to_fields(item, only), node_name=item.node_name or node, time=time)
    if isinstance(item, LostEvent):
        last = _time(item.last) if item.last else None
        return answer(lost_events=to_fields(item), node_name=node, time=last)
    return answer(node_status=to_fields(item), node_name=node)


def field_mask(paths: Iterable[str]) -> Mask:
    """A mask of paths into a flow: ``["time", "source.pod_name"]``.

    :raises ModelError: one leads nowhere.
    """
    found: dict[str, Any] = {}
    for path in paths:
        names = path.split(".")
        descriptor = message("flow.Flow").DESCRIPTOR
        at: dict[str, Any] | None = found
        for depth, name in enumerate(names):
            field = descriptor.fields_by_name.get(name) if descriptor is not None else None
            if field is None or depth >= _DEPTH:
                raise ModelError(f"field_mask: {shown(path)} leads nowhere in a flow")
            repeated = _repeated(field)
            descriptor = None if repeated else field.message_type
            if at is None:  # a shorter path has taken all of it
                continue
            last = depth == len(names) - 1
            if last:
                at[name] = {}
            elif name in at and not at[name]:
                at = None
            else:
                at = at.setdefault(name, {})
    return found


def _repeated(field: Any) -> bool:
    told: bool = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    return told


def from_proto(proto: Any, kind: type[M]) -> M:
    """The value of a message."""
    arguments: dict[str, Any] = {}
    for each, read in _readers(kind):
        value = read(proto)
        if value is not None:
            arguments[each] = value
    return kind(**arguments)


# -- to messages ------------------------------------------------------------------------------------

_PLANS: dict[type[Any], tuple[tuple[str, str, bool, Encoder], ...]] = {}


def _plan(kind: type[Any]) -> tuple[tuple[str, str, bool, Encoder], ...]:
    if kind not in _PLANS:
        _PLANS[kind] = tuple(
            (each.attribute, each.name, each.optional, _encoder(each)) for each in parts(kind)
        )
    return _PLANS[kind]


def _time(nanoseconds: int) -> dict[str, int]:
    seconds, rest = divmod(nanoseconds, _SECOND)
    return {"seconds": seconds, "nanos": rest}


def _encoder(each: Part) -> Encoder:
    cases = {of: name for name, of in each.of.items()} if isinstance(each.of, dict) else {}

    def same(value: Any) -> Any:
        return value

    encoders: dict[Kind, Callable[[Any], Any]] = {
        Kind.PLAIN: (lambda value: {"value": value}) if each.optional else same,
        Kind.LONG: same,
        Kind.TIME: _time,
        Kind.ENUM: int,
        Kind.BITS: lambda value: {member.name: True for member in each.of if value & member},
        Kind.ONE: to_fields,
        Kind.WRAPPED: lambda value: {cases[type(value)]: to_fields(value)},
        Kind.CHOICE: to_fields,
    }
    return placed(each, encoders[each.kind])


# -- from messages ----------------------------------------------------------------------------------

_Reader: TypeAlias = Callable[[Any], Any]
_READERS: dict[type[Any], tuple[tuple[str, _Reader], ...]] = {}


def _readers(kind: type[Any]) -> tuple[tuple[str, _Reader], ...]:
    if kind not in _READERS:
        _READERS[kind] = tuple((each.attribute, _reader(each)) for each in parts(kind))
    return _READERS[kind]


def _reader(each: Part) -> _Reader:
    """What reads a part of a message, None if it is not there."""
    name = each.name
    known = {member.value: member for member in each.of} if each.kind is Kind.ENUM else {}

    def bits(proto: Any) -> Any:
        return sum((member for member in each.of if getattr(proto, member.name)), each.of(0))

    decoders: dict[Kind, Callable[[Any], Any]] = {
        Kind.PLAIN: (lambda value: value.value) if each.optional else (lambda value: value),
        Kind.LONG: lambda value: value,
        Kind.TIME: lambda value: value.seconds * _SECOND + value.nanos,
        Kind.ENUM: lambda value: known.get(value, value),
        Kind.BITS: bits,
        Kind.ONE: lambda value: from_proto(value, each.of),
        Kind.WRAPPED: lambda value: _chosen(value, each.of),
    }
    if each.kind is Kind.CHOICE:
        return lambda proto: _chosen(proto, each.of)
    decode = decoders[each.kind]
    if each.many:
        return lambda proto: tuple(decode(value) for value in getattr(proto, name))
    if each.optional or each.kind in (Kind.TIME, Kind.BITS, Kind.ONE, Kind.WRAPPED):
        return lambda proto: decode(getattr(proto, name)) if proto.HasField(name) else None
    return lambda proto: decode(getattr(proto, name))


def _chosen(proto: Any, cases: Mapping[str, type[Message]]) -> Any:
    for name, of in cases.items():
        if proto.HasField(name):
            return from_proto(getattr(proto, name), of)
    return None
