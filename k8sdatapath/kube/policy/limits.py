"""How much one policy may ask for: what is beyond is refused by its field, before anything is made of it."""

from __future__ import annotations

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.documents import MAX_DEPTH
from k8sdatapath.kube.fields import Field
from k8sdatapath.model.policy import Block, Policy, prefixes

__all__ = ["MAX_BYTES", "MAX_ENTRIES", "MAX_VALUES", "modest", "sized"]

MAX_VALUES = 50_000
"""Values in one object. An API server stores some 1.5 MB, of which a value takes 30 bytes and more."""

MAX_BYTES = 16 << 20
"""Of one file."""

MAX_ENTRIES = 65_536
"""Networks times ports of one rule, and networks of one policy: a policy map holds no more."""


def sized(root: Field) -> Field:
    """Itself, if it is of a size that policies have.

    An empty item of a list, as a comment leaves it behind, would be one that fits everybody.

    :raises ManifestError: it has too many values, is nested too deep, or has an empty item.
    """
    left = MAX_VALUES
    waiting = [(root, 0)]
    while waiting:
        field, depth = waiting.pop()
        value = field.value
        if type(value) is not dict and type(value) is not list:
            continue
        left -= len(value)
        if left < 0:
            what = f"{len(value)} values here: " if len(value) > MAX_VALUES // 2 else ""
            field.refuse(f"{what}a policy has at most {MAX_VALUES} in all")
        if depth == MAX_DEPTH:
            field.refuse(f"more than {MAX_DEPTH} lists and mappings inside each other")
        inside = [field[str(key)] for key in value] if type(value) is dict else field.items()
        if type(value) is list and None in value:
            inside[value.index(None)].refuse("an item that is empty: fill it in, or take it out")
        waiting += [(each, depth + 1) for each in inside]
    return root


def modest(policy: Policy) -> Policy:
    """Itself, if one pod's policy map could hold what it asks for.

    :raises ManifestError: a rule, or all of them, ask for too much.
    """
    networks = 0
    for rule in policy.rules:
        own = sum(len(peer.networks) for peer in rule.peers if isinstance(peer, Block))
        rows = sum(1 if each.name else sum(1 for _ in prefixes(each.first, each.last)) for each in rule.ports)
        networks += own
        if own * rows > MAX_ENTRIES:
            needed = f"{own} networks with {rows} prefixes of ports are {own * rows} entries"
            reason = f"{needed}: at most {MAX_ENTRIES}"
            raise ManifestError(policy.where, rule.name, reason)
        if networks > MAX_ENTRIES:
            reason = f"{networks} networks up to here: a policy has at most {MAX_ENTRIES}"
            raise ManifestError(policy.where, rule.name, reason)
    return policy
