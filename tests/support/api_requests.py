"""What an API server is asked, and its answers that are not 200."""

from __future__ import annotations

import time
from typing import Any

from attrs import define, field

Object = dict[str, Any]


@define
class Query:
    """What a request asks for."""

    plural: str
    api: str
    options: dict[str, str]
    started: float = field(factory=time.monotonic)

    @property
    def watch(self) -> bool:
        return self.options.get("watch") in ("1", "true")

    def selects(self, value: Object | None) -> bool:
        if value is None:
            return False
        labels = value["metadata"].get("labels") or {}
        for term in filter(None, self.options.get("labelSelector", "").split(",")):
            name, equal, wanted = term.partition("=")
            fits = (
                labels.get(name) == wanted if equal else (term.lstrip("!") in labels) != term.startswith("!")
            )
            if not fits:
                return False
        for term in filter(None, self.options.get("fieldSelector", "").split(",")):
            way, _, wanted = term.partition("=")
            found: Any = value
            for name in way.split("."):
                found = found.get(name) if isinstance(found, dict) else None
            if found != wanted:
                return False
        return True


class Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, code: int, reason: str, message: str = "", retry_after: int | None = None) -> None:
        super().__init__(code, reason, message)
        self.code = code
        self.retry_after = retry_after
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message or reason,
            "reason": reason,
            "code": code,
        }


def expired(version: int, oldest: int) -> Refusal:
    return Refusal(410, "Expired", f"too old resource version: {version} ({oldest})")
