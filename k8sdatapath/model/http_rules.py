"""Which requests of HTTP a policy allows, as values.

A rule is met by a request that has all it asks for; of several rules one is enough. Regular expressions are
extended ones, and are about the *whole* of what they match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown
from k8sdatapath.model.regex import Regex

__all__ = ["HTTPRule", "HeaderRule"]

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[!-~](?:[ \t!-~]*[!-~])?")


def _to_name(name: str) -> str:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise ModelError(f"{shown(name)} is not the name of a header")
    return name.lower()


def _to_value(value: str | None) -> str | None:
    if value is not None and not (isinstance(value, str) and _VALUE.fullmatch(value)):
        raise ModelError(f"{shown(value)} is not the value of a header: ASCII, no space around it")
    return value


@frozen
class HeaderRule:
    """A header that a request must have: ``HeaderRule("X-Tenant", "blue")``.

    :param name: however it is capitalised.
    :param value: it is there once, and this is its value; None: any value, any number of times.
    """

    name: str = field(converter=_to_name)
    value: str | None = field(default=None, converter=_to_value)

    @classmethod
    def parse(cls, text: str) -> HeaderRule:
        """Read ``X-Tenant``, or ``X-Tenant: blue``.

        :raises ModelError: it is neither.
        """
        name, space, value = text.partition(" ")
        return cls(name.removesuffix(":") if space else name, value.strip(" ") if space else None)

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}: {self.value}"


def _to_regex(pattern: str | Regex | None) -> Regex | None:
    if pattern is None or isinstance(pattern, Regex):
        return pattern
    if not isinstance(pattern, str):
        raise ModelError(f"{shown(pattern)} is not a regular expression")
    return Regex(pattern) if pattern else None


def _to_headers(headers: Iterable[HeaderRule | str]) -> tuple[HeaderRule, ...]:
    """Sort them, each once: two rules that ask the same are equal."""
    if isinstance(headers, str):
        raise ModelError(f"headers is an iterable of headers; {shown(headers)} is a single one")
    return tuple(
        sorted(
            {each if isinstance(each, HeaderRule) else HeaderRule.parse(each) for each in headers},
            key=lambda each: (each.name, each.value or ""),
        )
    )


@frozen(kw_only=True)
class HTTPRule:
    """Requests that are allowed: ``HTTPRule(method="GET", path="/products/[0-9]+")``.

    What is left out may be anything; a rule without anything allows every request that is well-formed.

    :param method: as it is sent: methods are upper case.
    :param path: with the query, if there is one: ``/products(\\?.*)?``.
    :param host: what the header Host has, with the port, if there is one; of a request without it nothing.
    :param headers: that all must be there, as ``"X-Tenant"`` or ``"X-Tenant: blue"``.
    :raises RegexError: a regular expression that is none, or not supported; says the column.
    """

    method: Regex | None = field(default=None, converter=_to_regex)
    path: Regex | None = field(default=None, converter=_to_regex)
    host: Regex | None = field(default=None, converter=_to_regex)
    headers: tuple[HeaderRule, ...] = field(default=(), converter=_to_headers)

    def __str__(self) -> str:
        method = "any method" if self.method is None else self.method.pattern
        path = "any path" if self.path is None else self.path.pattern
        host = "" if self.host is None else f" of {self.host.pattern}"
        headers = f" with {', '.join(map(str, self.headers))}" if self.headers else ""
        return f"{method} {path}{host}{headers}"
