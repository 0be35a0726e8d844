"""Whom the header of a tunnel speaks of: kd_identities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from k8sdatapath import maps
from k8sdatapath.datapath.policy_leads import Who, outside
from k8sdatapath.model.identity import LOCAL_NUMBERS
from k8sdatapath.tables.policy import IdentityKey

__all__ = ["Senders"]

_FIRST = 256
"""Of the identities of labels, which all nodes know."""


class Senders:
    """Leads identities of pods to the numbers that rules have for them, while these rules are there.

    The sender's node and this one need not have heard of the same changes. A number that has no rules yet, or
    not all any more, is led to by nothing: what is sent under it is denied.
    """

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self._keys: dict[Who, IdentityKey] = {}
        self._numbers: dict[IdentityKey, dict[Who, int]] = {}  # they differ in what says nothing of senders
        self.go_on_in(tables)

    def go_on_in(self, tables: Mapping[str, Any]) -> None:
        """The same stands in other maps now."""
        self._table: maps.Hash[IdentityKey, int] = tables["kd_identities"]

    def lead(self, new: Iterable[Who], numbers: Mapping[Who, int]) -> None:
        """Their rules are there.

        :param numbers: of everybody.
        """
        written: dict[IdentityKey, int] = {}
        for who in new:
            if not _FIRST <= who.identity < LOCAL_NUMBERS.start or who.audited:
                continue
            network = 0 if who.network is None else numbers[outside(who.network)]
            key = IdentityKey(who.identity, network)
            if key not in self._numbers and len(self._numbers) == self._table.info.max_entries:
                continue  # it is nobody, where both nodes differ
            self._keys[who] = key
            self._numbers.setdefault(key, {})[who] = written[key] = numbers[who]
        self._table.update_many(written)

    def leave(self, gone: Iterable[Who]) -> None:
        """Their rules will go."""
        touched = dict[IdentityKey, None]()
        for who in gone:
            if who in self._keys:
                key = self._keys.pop(who)
                del self._numbers[key][who]
                touched[key] = None
        left = {key: number for key in touched for number in self._numbers[key].values()}
        self._table.update_many(left)
        self._table.delete_many([key for key in touched if key not in left])
        for key in touched.keys() - left:
            del self._numbers[key]

    def drop_strange(self) -> None:
        """Delete what an earlier process has left."""
        self._table.delete_many([key for key in self._table if key not in self._numbers])
