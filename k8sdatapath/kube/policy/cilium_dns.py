"""``toPorts.rules.dns`` of Cilium's policies: names that name servers may be asked for."""

from __future__ import annotations

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around
from k8sdatapath.kube.policy.reading import name_field
from k8sdatapath.model.names import NamePattern

__all__ = ["dns_rules"]

MAX_RULES = 10_000
"""In one list."""


def dns_rules(field: Field, around: Around) -> tuple[NamePattern, ...]:
    """The names that ``rules`` allows to ask for; none at all, if it says nothing of names."""
    given = field["dns"].items()
    if len(given) > MAX_RULES:
        field["dns"].refuse(f"{len(given)} rules: at most {MAX_RULES} are expected")
    if given and field["http"].items():
        field["dns"].refuse("a port is read as HTTP or as DNS: http is here too")
    if given and not around.questions:
        field["dns"].refuse("nothing here reads what name servers are asked, so this cannot be enforced")
    return tuple(name_field(each).made(NamePattern) for each in given)
