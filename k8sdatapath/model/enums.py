"""Members of enums, taken by name and number too."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown

E = TypeVar("E", bound=IntEnum)


def member(kind: type[E], value: object, what: str) -> E:
    """The member of an enum that a name or number stands for.

    :param what: an enum's member, for the error.
    :raises ModelError: it stands for none.
    """
    known = kind.__members__
    if isinstance(value, str) and value.upper() in known:
        return known[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and value in known.values():
        return kind(value)
    raise ModelError(f"{shown(value)} is not a {what} ({', '.join(known)})")


def flag(value: bool) -> bool:
    """Check a truth value.

    :raises ModelError: something else, however true.
    """
    if value is True or value is False:
        return value
    raise ModelError(f"{shown(value)} is neither True nor False")
