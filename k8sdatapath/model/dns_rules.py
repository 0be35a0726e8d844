"""Which questions to name servers a policy allows: the other answer, byte by byte.

Rules are names and patterns of them, :class:`~k8sdatapath.model.names.NamePattern`; one is enough. What the
kernel says is in ``bpf/include/kd/dns_rules.h``; this shares nothing with it, and tests hold both together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from k8sdatapath.errors import ModelError
from k8sdatapath.model.names import NamePattern

__all__ = ["NameVerdict", "asked_name", "judge_question"]

_HEADER = 12
_LONGEST_NAME, _LONGEST_LABEL = 255, 63
_LABEL = re.compile(rb"[-A-Za-z0-9_]+")


class NameVerdict(Enum):
    """What becomes of a message to a name server that may be asked for some names only."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    """No rule allows its name; who has asked is told so."""
    NO_QUESTION = "no question"
    """Whatever the rules say: no single question, or one that could be read in two ways."""


def asked_name(message: bytes) -> str | None:
    """The name that a message asks for, in lower case; None: it has a letter that names have not.

    :raises ModelError: it is no single question.
    """
    if len(message) < _HEADER or message[2] >> 3 or message[4:6] != b"\0\1":
        raise ModelError("not one plain question")
    labels: list[bytes] = []
    at = _HEADER
    while True:
        size = message[at] if at < len(message) else _LONGEST_LABEL + 1
        if size > _LONGEST_LABEL or at + 1 - _HEADER > _LONGEST_NAME:
            raise ModelError("a name that is compressed, too long, or not complete")
        at += 1
        if not size:
            break
        labels.append(message[at : at + size])
        at += size
    if at + 4 > len(message):
        raise ModelError("a question without a type or a class")
    if not all(map(_LABEL.fullmatch, labels)):
        return None
    return b".".join(labels).decode().lower() or "."


def judge_question(message: bytes, rules: Iterable[NamePattern]) -> NameVerdict:
    """What becomes of a message, the payload of a datagram, by some rules."""
    try:
        name = asked_name(message)
    except ModelError:
        return NameVerdict.NO_QUESTION
    fits = name is not None and any(each.matches(name) for each in rules)
    return NameVerdict.ALLOWED if fits else NameVerdict.REFUSED
