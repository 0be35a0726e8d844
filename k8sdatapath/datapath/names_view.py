"""NamesView: names that name servers may be asked for, out of the maps of whoever put them in force."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from attrs import frozen

from k8sdatapath import maps
from k8sdatapath.datapath.contract import Bindable, bind_maps
from k8sdatapath.resource import Resource
from k8sdatapath.tables.dns import DnsNameKey
from k8sdatapath.tables.policy import NameRow

__all__ = ["LiveName", "NamesView"]

_CONTRACT = {"kd_dns_names": maps.Hash[DnsNameKey, NameRow]}


@frozen
class LiveName:
    """A name, or a pattern of them, that may be asked for.

    :ivar set: the number of the set that it belongs to, which rules of policies have: :attr:`LiveRule.names`.
    """

    set: int
    name: str


class NamesView(Resource):
    """Reads what some process has put in force, and changes nothing::

        with NamesView.bind(PinDir("/sys/fs/bpf/k8sdatapath")) as view:
            print(view.names())

    Make one with :meth:`bind`.
    """

    def __init__(self, tables: Mapping[str, Any], own: ExitStack) -> None:
        self._names: maps.Hash[DnsNameKey, NameRow] = tables["kd_dns_names"]
        self._own = own

    @classmethod
    def bind(cls, source: Bindable) -> NamesView:
        """A view of the maps of an object, a pin directory, or a mapping of name to map.

        :raises ContractError: the map is missing.
        :raises LayoutError: it holds something else.
        """
        return cls(*bind_maps(source, _CONTRACT, "a view of names"))

    def names(self) -> tuple[LiveName, ...]:
        """Those of all sets. One that nobody asks for any more stays for a while."""
        rows = sorted((key.set, key.name, row.text) for key, row in self._names.items())
        return tuple(LiveName(number, text) for number, _, text in rows)

    def close(self) -> None:
        """Let go of the map."""
        self._own.close()

    def __repr__(self) -> str:
        return f"<NamesView {self._names!r}>"
