"""How much a datapath tells of what becomes of packets."""

from __future__ import annotations

from enum import IntEnum

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown

__all__ = ["Level", "to_level"]


class Level(IntEnum):
    """``enum kd_event_level``: how much is told.

    * ``OFF``: nothing.
    * ``DROPS``: what was dropped.
    * ``AGGREGATED``: and of each connection its first packet at each point, those with a new SYN, FIN or RST,
      and one packet every few seconds.
    * ``ALL``: and every packet.
    """

    OFF = 0
    DROPS = 1
    AGGREGATED = 2
    ALL = 3


def to_level(value: Level | str) -> Level:
    """Make a level of its name in lower case.

    :raises ModelError: there is none of this name.
    """
    if isinstance(value, Level):
        return value
    known = {each.name.lower(): each for each in Level}
    if not isinstance(value, str) or value not in known:
        raise ModelError(f"a level is one of {', '.join(known)}, not {shown(value)}")
    return known[value]
