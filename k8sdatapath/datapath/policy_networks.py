"""The networks that policies tell apart, and the narrowest of them that an address is in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network

from k8sdatapath.model import IPAddress, IPNetwork

__all__ = ["Networks"]


class Networks:
    """A bag of networks: each is in it as often as it was added."""

    def __init__(self, networks: Iterable[IPNetwork] = ()) -> None:
        self._counts: Counter[IPNetwork] = Counter()
        self._lengths: tuple[tuple[int, int], ...] = ()
        self.add(networks)

    def __iter__(self) -> Iterator[IPNetwork]:
        return iter(self._counts)

    def __contains__(self, network: object) -> bool:
        return network in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, networks: Iterable[IPNetwork]) -> None:
        """Put some in."""
        self._counts.update(networks)
        self._sort()

    def remove(self, networks: Iterable[IPNetwork]) -> None:
        """Take out some that are in it."""
        self._counts.subtract(networks)
        self._counts = +self._counts
        self._sort()

    def narrowest(self, ip: IPAddress) -> IPNetwork | None:
        """The narrowest that an address is in; None: it is in none."""
        for version, length in self._lengths:
            if version == ip.version:
                kind = IPv4Network if version == 4 else IPv6Network
                network = kind((int(ip), length), strict=False)
                if network in self._counts:
                    return network
        return None

    def _sort(self) -> None:
        lengths = {(each.version, each.prefixlen) for each in self._counts}
        self._lengths = tuple(sorted(lengths, reverse=True))
