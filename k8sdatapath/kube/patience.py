"""How long a watch waits for what."""

from __future__ import annotations

from attrs import frozen

__all__ = ["Patience"]


@frozen(kw_only=True)
class Patience:
    """How long is waited for what, in seconds.

    :param connect: for a connection, each try.
    :param answer: for the server to begin, or to go on with, an answer.
    :param watch: how long the server is asked to keep a watch open; between this and twice this, so that not
        all watches of a cluster end at once.
    :param silence: for the end of a watch that is overdue: then the connection is taken for dead.
    :param first: after a first failure. Each further one doubles it, up to ``most``; the wait is between
        half of that and all.
    :param steady: a failure after a watch of so long counts as a first one.
    """

    connect: float = 0.8
    answer: float = 30.0
    watch: float = 300.0
    silence: float = 15.0
    first: float = 0.2
    most: float = 30.0
    steady: float = 10.0
