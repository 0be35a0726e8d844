"""What is held until it is closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

__all__ = ["Resource"]


class Resource(ABC):
    """Something with an end: :meth:`close` by hand, or leaving a ``with``."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Give it up; does nothing the second time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
