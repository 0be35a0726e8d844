"""What values of filters mean, before anybody asks of which part of a flow: addresses, names and expressions.

Regular expressions are RE2's, which take time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network

from k8sdatapath.errors import MissingExtraError, ModelError
from k8sdatapath.model.address import IPAddress, shown

__all__ = ["addresses", "expressions", "globs", "named"]

_GLOB = re.compile(r"[-.0-9a-z_*]+", re.ASCII)


@lru_cache(maxsize=65536)
def _parsed(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def addresses(values: Iterable[str]) -> Callable[[str], bool]:
    """The test of an address: it is one of some, or in one of some networks.

    :raises ModelError: a value is neither.
    """
    exact, networks = set(), []
    for value in values:
        try:
            if "/" in value:
                networks.append(ip_network(value, strict=False))
            else:
                exact.add(ip_address(value))
        except ValueError:
            raise ModelError(f"{shown(value)} is neither an address nor a network") from None

    def test(text: str) -> bool:
        found = _parsed(text)
        if found is None:
            return False
        return found in exact or any(found in network for network in networks)

    return test


def named(values: Iterable[str]) -> Callable[[str, str], bool]:
    """The test of a namespace and a name.

    :raises ModelError: a value is empty.
    """
    wanted = []
    for value in values:
        if not value:
            raise ModelError("an empty name")
        namespace, slash, prefix = value.partition("/")
        wanted.append((namespace, prefix) if slash else ("default", value))

    def test(namespace: str, name: str) -> bool:
        if not namespace and not name:
            return False
        return any(there in ("", namespace) and name.startswith(prefix) for there, prefix in wanted)

    return test


def globs(values: Iterable[str]) -> Callable[[str], bool]:
    """The test of a name: ``*`` is any run of what names are made of.

    :raises ModelError: a value is no pattern of names.
    """
    patterns = []
    for value in values:
        text = value.lower().removesuffix(".")
        if not _GLOB.fullmatch(text):
            raise ModelError(f"{shown(value)} is not a name, nor a pattern of names")
        pieces = [piece for index, piece in enumerate(text.split("*")) if piece or index == 0]
        anchored = not text.endswith("*")
        patterns.append((pieces[0], pieces[1:], anchored, "*" in text))
    exact = frozenset(first for first, _, _, starred in patterns if not starred)
    starred = [(first, rest, anchored) for first, rest, anchored, star in patterns if star]

    def one(name: str, first: str, rest: Sequence[str], anchored: bool) -> bool:
        """Pieces are found from the left, the last one from the right: nothing is tried twice."""
        if not name.startswith(first):
            return False
        at = len(first)
        last = rest[-1] if anchored and rest else ""
        for piece in rest[:-1] if last else rest:
            at = name.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return name.endswith(last) and len(name) - len(last) >= at

    def test(name: str) -> bool:
        name = name.lower().removesuffix(".")
        return name in exact or any(one(name, *each) for each in starred)

    return test


def expressions(values: Iterable[str]) -> Callable[[str], bool]:
    """The test of a text in which one of some expressions of RE2 is to occur.

    :raises ModelError: a value is no expression.
    :raises MissingExtraError: nothing here can search for them.
    """
    try:
        import re2
    except ModuleNotFoundError:
        raise MissingExtraError("regular expressions in filters of flows", "hubble") from None
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    found = []
    for value in values:
        try:
            found.append(re2.compile(value, options))
        except re2.error as error:
            told = error.args[0] if error.args else ""
            why = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
            raise ModelError(f"{shown(value)} is not a regular expression: {shown(why)}") from None
    return lambda text: any(each.search(text) for each in found)
