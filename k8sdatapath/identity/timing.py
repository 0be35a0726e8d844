"""When a number may be given to others."""

from __future__ import annotations

import time

from attrs import frozen

from k8sdatapath.errors import ModelError

__all__ = ["Timing", "clock"]


def clock() -> float:
    """Seconds that go on while a machine sleeps: for its peers they do, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@frozen(kw_only=True)
class Timing:
    """How long what takes, in seconds. Allocators and collectors of a store must have the same.

    :param beat: between two signs of life of a node.
    :param timeout: a node without one for so long is taken for gone, and all that it used for unused.
    :param grace: an identity that was unused for so long is deleted.
    :param quarantine: a number is given to nobody for so long after: until the last node has heard of it, and
        the last flow that began under it has ended.
    :raises ModelError: a node that lives would be taken for gone.
    """

    beat: float = 60.0
    timeout: float = 1800.0
    grace: float = 900.0
    quarantine: float = 3600.0

    def __attrs_post_init__(self) -> None:
        if not 0 < self.beat <= self.timeout / 3 or self.grace < 0 or self.quarantine < 0:
            raise ModelError(f"{self}: beat at most a third of timeout, none below 0")

    @property
    def validity(self) -> float:
        """How long after a sign of life a node can be sure of its numbers; less a tenth, for its clock."""
        return 0.9 * (self.timeout + self.grace + self.quarantine)
