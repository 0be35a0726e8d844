"""``toPorts.rules.http`` of Cilium's policies: what requests have to be.

Expressions that Cilium would take and that mean something else here, or cannot be decided byte by byte, are
refused with the column.
"""

from __future__ import annotations

from collections.abc import Iterator

from k8sdatapath.kube.fields import Field
from k8sdatapath.kube.policy.around import Around
from k8sdatapath.kube.policy.reading import known
from k8sdatapath.model.http_rules import HeaderRule, HTTPRule
from k8sdatapath.model.regex import Regex

__all__ = ["http_rules"]

MAX_RULES = 10_000
"""In one list."""

_UNABLE = {
    "kafka": "rules of Kafka are not enforced, and Cilium itself has them no more",
    "l7proto": "parsers of proxies are not here: only HTTP is enforced",
    "l7": "parsers of proxies are not here: only HTTP is enforced",
}
_UNABLE_MATCH = {
    "mismatch": "headers are not changed: a request that lacks one is denied",
    "secret": "values out of Secrets are not read",
}


def http_rules(field: Field, around: Around) -> tuple[HTTPRule, ...]:
    """What ``rules`` asks of requests; nothing at all, if it has no rule, as Cilium has it."""
    given = known(field, ("http", "dns"), _UNABLE)["http"].items()
    if len(given) > MAX_RULES:
        field["http"].refuse(f"{len(given)} rules: at most {MAX_RULES} are expected")
    if given and not around.requests:
        field["http"].refuse("nothing here looks at requests, so this cannot be enforced")
    return tuple(_rule(each) for each in given)


def _rule(field: Field) -> HTTPRule:
    known(field, ("method", "path", "host", "headers", "headerMatches"))
    method, path, host = (_expression(field[name]) for name in ("method", "path", "host"))
    headers = [each.made(HeaderRule.parse) for each in _texts(field["headers"])]
    headers += [_match(each) for each in field["headerMatches"].items()]
    return HTTPRule(method=method, path=path, host=host, headers=headers)


def _expression(field: Field) -> Regex | None:
    return field.made(Regex) if field.text("") else None


def _texts(field: Field) -> Iterator[Field]:
    for each in field.items():
        each.text()
        yield each


def _match(field: Field) -> HeaderRule:
    known(field, ("name", "value"), _UNABLE_MATCH)
    name, value = field["name"].text(), field["value"].text("")
    return field.made(lambda _: HeaderRule(name, value or None))
