"""DNS names, as policies name peers outside of the cluster by them.

A pattern of names is the key of a label of source ``fqdn``: an address has the labels of all patterns that
one of its names fits, so that what DNS answers changes who has which identity, and never a policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown
from k8sdatapath.model.labels import Label
from k8sdatapath.model.policy import Policy, Selector

__all__ = ["NamePattern", "name_labels", "name_patterns"]

_NAME = re.compile(r"[-a-z0-9_.]{1,255}")
_PATTERN = re.compile(r"[-a-z0-9_.*]{1,255}")
_MAX_STARS = 16


def _to_text(text: str) -> str:
    """Lower case, and without the dot that a name may end with."""
    if type(text) is not str or not _PATTERN.fullmatch(text.lower()):
        raise ModelError(f"{shown(text)} is not a DNS name or a pattern of them (a-z, 0-9, - _ . *)")
    found = text.lower().removesuffix(".") or "."
    if "" in found.split(".") and found != ".":
        raise ModelError(f"{shown(text)} has an empty part between dots")
    if found.count("*") > _MAX_STARS:
        raise ModelError(f"{shown(text)} has {found.count('*')} stars, at most {_MAX_STARS} are expected")
    return found


@frozen(cache_hash=True)
class NamePattern:
    """A DNS name, or some: ``NamePattern("*.example.com")``.

    A ``*`` is any part of one label, ``**.`` at the beginning any labels (one at least), and ``*`` alone all
    names.

    :raises ModelError: it is none.
    """

    text: str = field(converter=_to_text)

    def matches(self, name: str) -> bool:
        """Whether a name fits; what is no name fits none."""
        name = name.lower().rstrip(".") or "."
        if not _NAME.fullmatch(name):
            return False
        if self.text == "*":
            return True
        wanted, labels = self.text.split("."), name.split(".")
        if wanted[0] == "**" and len(wanted) > 1:
            wanted = wanted[1:]
            labels, above = labels[len(labels) - len(wanted) :], labels[: len(labels) - len(wanted)]
            if not all(above) or not above:
                return False
        return len(wanted) == len(labels) and all(map(_fits, wanted, labels))

    @property
    def label(self) -> str:
        """The label of addresses that have such a name."""
        return str(Label(self.text, source="fqdn"))

    def __str__(self) -> str:
        return self.text


def _fits(pattern: str, label: str) -> bool:
    """Whether one label fits a pattern; in time that grows by their lengths' product, whatever they are."""
    first, *rest = pattern.split("*")
    if not rest:
        return first == label
    if not label.startswith(first) or len(label) < len(first) + len(rest[-1]) or not label.endswith(rest[-1]):
        return False
    at, end = len(first), len(label) - len(rest[-1])
    for part in rest[:-1]:
        at = label.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def name_labels(patterns: Iterable[NamePattern], names: Iterable[str]) -> Iterator[str]:
    """The labels of an address that has some names."""
    known = tuple(names)
    for each in dict.fromkeys(patterns):
        if any(map(each.matches, known)):
            yield each.label


def name_patterns(policies: Iterable[Policy]) -> Iterator[NamePattern]:
    """The patterns that peers of policies are named by."""
    for policy in policies:
        for rule in policy.rules:
            for peer in rule.peers:
                for each in peer.requirements if isinstance(peer, Selector) else ():
                    if each.key.startswith("fqdn:"):
                        yield NamePattern(each.key.removeprefix("fqdn:"))
