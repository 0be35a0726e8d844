"""Flows in columns: millions of events at once, for numpy, pandas, polars and Arrow, which are extras."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from k8sdatapath.datapath.flow_decoder import MADE, Decoder
from k8sdatapath.errors import MissingExtraError
from k8sdatapath.layout import layout_of
from k8sdatapath.layout.codecs import Scalar, Wire
from k8sdatapath.model.flow import Endpoint
from k8sdatapath.tables.events import EventState, PackedEvent, Point, reason_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["frame", "packed_columns"]

_SCALARS = {"B": "u1", "H": "u2", "I": "u4", "Q": "u8", "i": "i4"}
_NUMBERS = ("protocol", "tcp_flags", "icmp_type", "icmp_code", "length", "packets", "bytes", "ifindex")
_NOBODY = bytes(16)


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(f"flows for {module}", "frames") from None


def packed_columns(data: bytes) -> np.ndarray[Any, Any]:
    """Events as they came from the kernel, one after the other, as a structured array over the same bytes.

    Its columns are the members of ``struct kd_event``; addresses are 16 bytes each.

    :raises MissingExtraError: numpy is not installed.
    """
    np = _extra("numpy")
    fields = {
        field.name: (f"{'>' if isinstance(field.codec, Wire) else '='}{_SCALARS[field.codec.form]}"
                     if isinstance(field.codec, Scalar) else "V16", field.offset)
        for field in layout_of(PackedEvent).fields
        if field.name != "pad"
    }  # fmt: skip
    kind = np.dtype(
        {
            "names": list(fields),
            "formats": [each for each, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": layout_of(PackedEvent).size,
        }
    )
    return np.frombuffer(data, dtype=kind)  # type: ignore[no-any-return]


def frame(data: bytes, decoder: Decoder, kind: str) -> Any:
    """Events as a table with names, of ``pandas``, ``polars`` or ``pyarrow``.

    What was lost is not in it, nor are requests.

    :raises MissingExtraError: it is not installed.
    """
    columns = named_columns(data, decoder)
    module = _extra(kind)
    return module.table(columns) if kind == "pyarrow" else module.DataFrame(columns)


def named_columns(data: bytes, decoder: Decoder) -> dict[str, Any]:
    """Columns of text, numbers and points in time."""
    np = _extra("numpy")
    events = packed_columns(data)
    events = events[events["point"] < MADE]
    found: dict[str, Any] = {"time": (events["time"] + np.uint64(decoder.clock)).astype("datetime64[ns]")}
    found["outcome"] = _named(
        events["result"], lambda result: decoder.outcomes.get(reason_of(int(result)), "")
    )
    found["point"] = _named(events["point"], lambda point: Point(int(point)).name)
    found["state"] = _named(events["state"], lambda state: EventState(int(state)).name)
    for side in ("source", "destination"):
        found |= _end(events, side, decoder)
    for column, port in (("seen_source", "seen_source_port"), ("dialled", "dialled_port")):
        found[column] = _named(events[column], lambda where: decoder.text(bytes(where)))
        found[port] = _native(events[port])
    for column in (
        "protocol",
        "tcp_flags",
        "icmp_type",
        "icmp_code",
        "length",
        "packets",
        "bytes",
        "ifindex",
    ):
        found[column] = _native(events[column])
    return found


def _end(events: np.ndarray[Any, Any], side: str, decoder: Decoder) -> dict[str, Any]:
    """Who one end was; asked once for each address, or for all its events if first and last differ."""
    np = _extra("numpy")
    addresses = events[side]
    values, firsts, places = np.unique(addresses, return_index=True, return_inverse=True)
    lasts = len(addresses) - 1 - np.unique(addresses[::-1], return_index=True)[1]

    def who(number: int) -> Endpoint:
        event = events[number]
        where = bytes(event[side])
        if where == _NOBODY:
            return Endpoint()
        return decoder.endpoint(where, int(event[f"{side}_identity"]), int(event["time"]))

    ends = np.empty(len(values), dtype=object)
    ends[:] = [who(number) for number in firsts]
    found = ends[places]
    for index, last in enumerate(lasts):
        if who(last) != ends[index]:
            for number in np.flatnonzero(places == index):
                found[number] = who(number)
    return {
        side: _named(addresses, lambda where: decoder.text(bytes(where))),
        f"{side}_port": _native(events[f"{side}_port"]),
        f"{side}_identity": np.array([end.identity for end in found], dtype="u4"),
        f"{side}_namespace": np.array([end.namespace for end in found], dtype=object),
        f"{side}_pod": np.array([end.pod_name for end in found], dtype=object),
    }


def _native(column: np.ndarray[Any, Any]) -> Any:
    return column.astype(column.dtype.newbyteorder("="))


def _named(column: np.ndarray[Any, Any], name: Callable[[Any], str | int]) -> Any:
    """Each value's name, found once."""
    np = _extra("numpy")
    values, places = np.unique(column, return_inverse=True)
    names: Mapping[int, str | int] = {index: name(value) for index, value in enumerate(values)}
    return np.array([names[index] for index in range(len(values))], dtype=object)[places]
