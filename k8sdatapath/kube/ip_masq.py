"""ip-masq-agent's configuration, a file that may change: which destinations know pods by their addresses.

::

    nonMasqueradeCIDRs: [10.0.0.0/8, "fd00::/8"]
    masqLinkLocal: false
    masqLinkLocalIPv6: false
    resyncInterval: 60s

YAML or JSON. What it does not say is as that agent has it; without ``nonMasqueradeCIDRs`` those are all
networks that are private, or reserved for something else than the world.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from k8sdatapath.errors import ManifestError, near_misses
from k8sdatapath.kube.documents import parse_yaml
from k8sdatapath.model import IPNetwork, Masquerade, network
from k8sdatapath.model.address import shown

__all__ = ["RESERVED", "IpMasqConfig", "IpMasqFile"]

#: What is not masqueraded if nothing is said of it.
RESERVED: Final[tuple[IPNetwork, ...]] = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8",
            "100.64.0.0/10",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "240.0.0.0/4",
        ),
    )
)

_LARGEST = 1 << 20
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|ms|s|m|h)")


def _duration(value: Any) -> float:
    """Seconds of ``1m30s``."""
    parts = _PART.findall(value) if isinstance(value, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError(f"{shown(value)} is no duration, as in 60s or 1m30s")
    seconds: float = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds:
        raise ValueError(f"{shown(value)} is no time at all")
    return seconds


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is neither true nor false")
    return value


def _networks(value: Any) -> tuple[IPNetwork, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is not a list")
    return tuple(map(_network, value))


def _network(value: Any) -> IPNetwork:
    found = network(value)
    if str(found.network_address) != str(network(str(value).partition("/")[0]).network_address):
        raise ValueError(f"{shown(value)} begins in the middle of a network: {found} is meant?")
    return found


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{shown(value)} is not a number")
    return value


_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "nonMasqueradeCIDRs": ("not_masqueraded", _networks),
    "masqLinkLocal": ("link_local", _flag),
    "masqLinkLocalIPv6": ("link_local_ipv6", _flag),
    "resyncInterval": ("resync_interval", _duration),
    "cidrLimit": ("limit", _count),
}


@frozen(kw_only=True)
class IpMasqConfig:
    """What such a file says.

    :ivar not_masqueraded: destinations that know pods by their own addresses.
    :ivar link_local: whether 169.254.0.0/16 does not; ``link_local_ipv6``: whether fe80::/10 does not.
    :ivar resync_interval: seconds between looks at the file, at most.
    :ivar limit: how many networks there may be.
    """

    not_masqueraded: tuple[IPNetwork, ...] = RESERVED
    link_local: bool = False
    link_local_ipv6: bool = False
    resync_interval: float = 60.0
    limit: int = 16_000

    @classmethod
    def parse(cls, text: str, where: str = "") -> IpMasqConfig:
        """Read one.

        :param where: for messages.
        :raises ManifestError: what cannot be or is not understood, and where it stands.
        """
        documents = [each for each in parse_yaml(text, where) if each is not None]
        if len(documents) > 1 or not all(isinstance(each, dict) for each in documents):
            raise ManifestError(where, "", "one mapping is expected")
        said: dict[str, Any] = {}
        for name, value in (documents[0] if documents else {}).items():
            if name not in _FIELDS:
                raise ManifestError(where, name, f"unknown; {near_misses(name, _FIELDS)}")
            field_name, convert = _FIELDS[name]
            if value is None:
                continue
            try:
                said[field_name] = convert(value)
            except ValueError as error:
                raise ManifestError(where, name, str(error)) from None
        made = cls(**said)
        if len(made.not_masqueraded) > made.limit:
            count = len(made.not_masqueraded)
            raise ManifestError(where, "nonMasqueradeCIDRs", f"{count} networks, at most {made.limit} may be")
        return made

    def added_to(self, masquerade: Masquerade) -> Masquerade:
        """The same, with what this says excluded as well."""
        families = {4: self.link_local, 6: self.link_local_ipv6}
        return evolve(
            masquerade,
            exclude=(*masquerade.exclude, *self.not_masqueraded),
            link_local=[version for version, said in families.items() if said],
        )


@define
class IpMasqFile:
    """A file that says it, and may change, come and go. One that is not there says nothing.

    ::

        file = IpMasqFile(Path("/etc/config/ip-masq-agent"))
        if file.refresh():
            masquerade.plan(file.config.added_to(wanted)).apply()

    :ivar config: what it said when it could last be understood.
    :ivar problem: why it can no more; empty: it can.
    """

    path: Path
    config: IpMasqConfig = field(init=False, factory=IpMasqConfig)
    problem: str = field(init=False, default="")
    _seen: tuple[int, ...] | None = field(init=False, default=())

    def refresh(self) -> bool:
        """Look again; whether :attr:`config` has changed.

        :raises ManifestError: it cannot be read or understood: :attr:`config` stays, and it is looked at
            again when it has changed.
        """
        try:
            text = self._read()
            if text is None:
                return False
            config = IpMasqConfig.parse(text, str(self.path))
        except FileNotFoundError:
            self._seen, config = None, IpMasqConfig()
        except ManifestError as error:
            self.problem = str(error)
            raise
        before, self.config, self.problem = self.config, config, ""
        return before != config

    def _read(self) -> str | None:
        """Its text; None: it is as it was."""
        try:
            status = self.path.stat()
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if seen == self._seen:
                return None
            self._seen = seen
            with self.path.open("rb") as file:
                data = file.read(_LARGEST + 1)
            if len(data) > _LARGEST:
                raise ManifestError(str(self.path), "", f"larger than {_LARGEST} bytes")
            return data.decode()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ManifestError(str(self.path), "", str(error.strerror)) from None
        except UnicodeDecodeError:
            raise ManifestError(str(self.path), "", "this is not UTF-8 text") from None
