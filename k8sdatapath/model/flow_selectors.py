"""Selectors of labels as text, as Kubernetes writes them, over labels that have a source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown

__all__ = ["label_selector"]

_KEY = r"[A-Za-z0-9][A-Za-z0-9_.:/-]*"
_VALUE = r"[A-Za-z0-9_.:/-]*"
_REQUIREMENT = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<missing>{_KEY})"
    rf"|(?P<key>{_KEY})\s*(?:(?P<operator>==|=|!=)\s*(?P<value>{_VALUE})"
    rf"|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)",
    re.ASCII,
)


@lru_cache(maxsize=8192)
def _attributes(labels: tuple[str, ...]) -> Mapping[str, str]:
    """Values by key, with the source of the label and without."""
    found: dict[str, str] = {}
    for label in labels:
        name, _, value = label.partition("=")
        source, colon, key = name.partition(":")
        found[name] = value
        found.setdefault(f"any:{key if colon else source}", value)
        found.setdefault(key if colon else source, value)
    return found


def label_selector(text: str) -> Callable[[tuple[str, ...]], bool]:
    """What tells whether labels meet a selector: ``app in (web, api), !tier``.

    :raises ModelError: it is none.
    """
    tests: list[tuple[str, bool, frozenset[str] | None]] = []
    at = 0
    while at < len(text):
        found = _REQUIREMENT.match(text, at)
        if not found or (found.end() == len(text) and text.endswith(",")):
            raise ModelError(f"{shown(text)} is not a label selector (near {shown(text[at:])})")
        at = found.end()
        if found["absent"]:
            tests.append((found["missing"], False, None))
        elif found["set"]:
            values = frozenset(value.strip() for value in found["values"].split(","))
            tests.append((found["key"], found["set"] == "in", values))
        elif found["operator"]:
            tests.append((found["key"], found["operator"] != "!=", frozenset([found["value"]])))
        else:
            tests.append((found["key"], True, None))
    if not tests:
        raise ModelError("an empty label selector")

    def matches(labels: tuple[str, ...]) -> bool:
        known = _attributes(labels)
        for key, wanted, values in tests:
            met = key in known if values is None else known.get(key) in values
            if met is not wanted:
                return False
        return True

    return matches
