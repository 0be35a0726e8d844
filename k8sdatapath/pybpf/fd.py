"""One owner for every file descriptor."""

from __future__ import annotations

import os
import traceback
import warnings
import weakref
from typing import ClassVar

from k8sdatapath.errors import ClosedError
from k8sdatapath.resource import Resource


class Fd(Resource):
    """A file descriptor that is closed once, by its owner.

    :param number: the descriptor; ownership passes to this object.
    :param what: what it is, for messages (``"map kd_frontends"``).
    :ivar raw: the number, -1 once closed; :attr:`number` raises instead.

    Dropping the last reference without :meth:`close` warns with :class:`ResourceWarning`. Set
    :attr:`trace` to also remember where each one was made.
    """

    trace: ClassVar[bool] = False
    _open: ClassVar[weakref.WeakSet[Fd]] = weakref.WeakSet()

    __slots__ = ("__weakref__", "born", "raw", "what")

    def __init__(self, number: int, what: str) -> None:
        self.raw = number
        self.what = what
        self.born = "".join(traceback.format_stack(limit=8)[:-1]) if Fd.trace else ""
        Fd._open.add(self)

    @classmethod
    def live(cls) -> list[Fd]:
        """All that are open in this process: what a leak check looks at."""
        return [fd for fd in cls._open if not fd.closed]

    @property
    def number(self) -> int:
        """The descriptor's number.

        :raises ClosedError: after :meth:`close`.
        """
        if self.raw < 0:
            raise ClosedError(f"{self.what} is closed")
        return self.raw

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self.raw < 0

    def fileno(self) -> int:
        """The number, for select and friends."""
        return self.number

    def dup(self) -> Fd:
        """A second descriptor of the same kernel object, owned by the caller."""
        return Fd(os.dup(self.number), self.what)

    def close(self) -> None:
        """Close it; does nothing the second time."""
        number, self.raw = self.raw, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        if getattr(self, "raw", -1) >= 0:
            born = f", made at\n{self.born}" if self.born else ""
            warnings.warn(
                f"{self.what} (fd {self.raw}) was never closed{born}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            self.close()

    def __repr__(self) -> str:
        return f"<Fd {self.what} {'closed' if self.closed else self.raw}>"
