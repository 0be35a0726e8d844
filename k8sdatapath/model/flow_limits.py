"""How much of filters of flows may be asked for at once: each flow may be held against all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from k8sdatapath.errors import ModelError
from k8sdatapath.model.flow_filter import FlowFilter
from k8sdatapath.model.message import Message, parts

__all__ = ["MAX_EXPRESSIONS", "MAX_IN_ALL", "MAX_TEXT_IN_ALL", "check_size", "texts"]

MAX_IN_ALL = 4096
"""Values of all fields of all filters of a list."""
MAX_TEXT_IN_ALL = 1 << 16
"""Characters of them."""
MAX_EXPRESSIONS = 64
"""Regular expressions among them."""

_LONG = 1 << 13
"""A value that has more characters is refused by itself."""
_EXPRESSIONS = ("http_path", "http_url", "dns_query")


def texts(values: Iterable[Any]) -> Iterator[str]:
    """All text in the values of a field, which may have fields of their own."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Message):
            yield from texts(getattr(value, each.attribute) for each in parts(type(value)))


def check_size(what: str, filters: Iterable[FlowFilter]) -> None:
    """See that it does not take for ever to hold a flow against a list.

    :raises ModelError: it would.
    """
    values = text = expressions = 0
    for given in filters:
        for each in parts(FlowFilter):
            if each.many:
                field = getattr(given, each.attribute)
                values += len(field)
                text += sum(min(len(value), _LONG) for value in texts(field))
                expressions += len(field) if each.attribute in _EXPRESSIONS else 0
    for count, most, of in (
        (values, MAX_IN_ALL, "values"),
        (text, MAX_TEXT_IN_ALL, "characters"),
        (expressions, MAX_EXPRESSIONS, "regular expressions"),
    ):
        if count > most:
            raise ModelError(f"{what}: {count} {of} in all are more than {most}")
