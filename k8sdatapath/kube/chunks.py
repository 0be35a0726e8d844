"""The body of an HTTP answer that comes in chunks.

A watch has a chunk for each event. The usual readers give them one by one, each for some calls; when ten
thousand come in a second that is a good part of what they cost. Here all that have come are given at once.
"""

from __future__ import annotations

from collections.abc import Callable
from http.client import IncompleteRead

__all__ = ["Chunks"]

_END = b"\r\n"
_MAX_HEAD = 1 << 16


class Chunks:
    """Takes chunks apart.

    :param read: gives some bytes of the connection, waiting for the first; none at its end.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._rest = b""
        """The beginning of a head: what is between the data of two chunks."""
        self._left = 0
        """Bytes of a chunk that are still to come."""
        self._first = True
        self._last = False
        self.ended = False

    def read(self) -> bytes:
        """All of the body that has come since the last time, waiting for the first; none at its end.

        :raises IncompleteRead: the connection ended before.
        :raises ValueError: these are no chunks.
        """
        found: list[bytes] = []
        while not (found or self.ended):
            data = self._read()
            if not data:
                raise IncompleteRead(b"")
            self._split(self._rest + data if self._rest else data, found)
        return b"".join(found)

    def _split(self, data: bytes, found: list[bytes]) -> None:
        """Append what ``data`` has of the body."""
        at, size = 0, len(data)
        while not self._last:
            if self._left:
                if at == size:
                    break
                found.append(data[at : at + self._left])
                taken = min(self._left, size - at)
                at, self._left = at + taken, self._left - taken
            start = at if self._first else at + len(_END)
            end = data.find(_END, start)
            if end < 0:
                break
            if not self._first and data[at:start] != _END:
                raise ValueError("a chunk is longer than it says")
            self._left, self._first = int(data[start:end].partition(b";")[0], 16), False
            if self._left < 0:
                raise ValueError("a chunk of less than nothing")
            self._last = not self._left
            at = end + len(_END)
        self._rest = data[at:]
        if self._last:  # what may follow are headers, and an empty line
            self.ended = self._rest.startswith(_END) or _END + _END in self._rest
        if len(self._rest) > _MAX_HEAD:
            raise ValueError(f"a chunk with a head of more than {_MAX_HEAD} bytes")
