"""The public API is a file: a change of it shows in the diff."""

from __future__ import annotations

from tests.api.snapshot import SNAPSHOT, lines


def test_the_public_api_is_as_checked_in() -> None:
    now, then = list(lines()), SNAPSHOT.read_text().splitlines()
    added = [f"+ {line}" for line in now if line not in then]
    removed = [f"- {line}" for line in then if line not in now]
    assert now == then, "\n".join(["the public API changed (see `make generate`)", *removed, *added])
