"""A value inside a manifest that knows where it stands, so that every complaint names its field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from k8sdatapath.errors import ManifestError, ModelError
from k8sdatapath.model.address import shown

__all__ = ["Field"]

T = TypeVar("T")

_KINDS = {
    type(None): "nothing",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}


class Field:
    """One field. Read on with ``field["name"]`` and ``field.items()``; null counts as absent, as it does in
    Kubernetes.

    The path is put together only for an error: of a hundred thousand fields hardly one is ever named.
    """

    __slots__ = ("_key", "_parent", "value", "where")

    def __init__(self, value: Any, where: str = "", parent: Field | None = None, key: str | int = "") -> None:
        self.value = value
        self.where = where
        self._parent = parent
        self._key = key

    @property
    def path(self) -> str:
        """The way to it: ``spec.ports[0].port``."""
        if self._parent is None:
            return ""
        above = self._parent.path
        if isinstance(self._key, int) or "." in self._key:
            return f"{above}[{self._key}]"
        return f"{above}.{self._key}" if above else self._key

    def __getitem__(self, key: str) -> Field:
        value = self.value
        if value is not None:
            if type(value) is not dict:
                self.refuse(f"a mapping is expected here, this is {_kind(value)}")
            value = value.get(key)
        return Field(value, self.where, self, key)

    def items(self) -> list[Field]:
        """What is in a list; nothing, if it is absent."""
        value = self.value
        if value is None:
            return []
        if type(value) is not list:
            self.refuse(f"a list is expected here, this is {_kind(value)}")
        return [Field(item, self.where, self, index) for index, item in enumerate(value)]

    def given(self) -> Field:
        """Itself; absence is an error."""
        return self if self.value is not None else self.refuse("missing")

    def text(self, default: str | None = None) -> str:
        """The text here.

        :raises ManifestError: it is something else, or absent and without a default.
        """
        value = self.value
        if type(value) is str:
            return value
        if value is None and default is not None:
            return default
        return self.given().refuse(f"{shown(value)} is {_kind(value)}, not text")

    def flag(self) -> bool | None:
        """The true or false here, None if absent."""
        value = self.value
        if value is None or type(value) is bool:
            return value
        return self.refuse(f"{shown(value)} is {_kind(value)}, not true or false")

    def choice(self, *known: str, default: str | None = None) -> str:
        """One of some words."""
        word = self.text(default)
        return word if word in known else self.refuse(f"{shown(word)} is none of {', '.join(known)}")

    def made(self, make: Callable[[Any], T]) -> T:
        """What ``make`` makes of the value here; its ModelError becomes one about this field."""
        try:
            return make(self.given().value)
        except ModelError as error:
            self.refuse(str(error))

    def refuse(self, reason: str) -> NoReturn:
        """Say what is wrong here.

        :raises ManifestError: always.
        """
        raise ManifestError(self.where, self.path, reason) from None


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)
