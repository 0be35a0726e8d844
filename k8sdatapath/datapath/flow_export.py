"""Flows into files: a line of JSON each, as Hubble's exporter writes them and its client reads them."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from k8sdatapath.errors import ClosedError, ModelError
from k8sdatapath.flow_source import FlowSource
from k8sdatapath.model.address import shown
from k8sdatapath.model.flow import Flow, FlowEvent
from k8sdatapath.model.flow_match import Matcher
from k8sdatapath.model.message import Kind, Message, parts
from k8sdatapath.resource import Resource

__all__ = ["FlowExporter", "redacted"]

_log = logging.getLogger(__name__)

_REDACTED = "HUBBLE_REDACTED"
_SECRET = frozenset({"authorization", "cookie", "set-cookie", "proxy-authorization", "x-api-key"})


class FlowExporter(Resource):
    """A thread that appends flows to a file, and begins a new one when it is full. Losses are lines too.

    :param path: of the file; older ones are ``path.1``, ``path.2``, ...
    :param matches: which flows; default all.
    :param fields: what of a flow is written: paths like ``source.pod_name``; default everything.
    :param max_bytes: after which a file is full.
    :param backups: how many older files are kept.
    :param redact: changes what is written of a flow; the default takes secrets out of requests.
    :ivar error: why it has stopped, if it could not write.
    :raises OSError: the file cannot be written to.
    :raises ModelError: no such field, or size.
    """

    def __init__(
        self,
        source: FlowSource,
        path: str | os.PathLike[str],
        *,
        matches: Matcher | None = None,
        fields: Iterable[str] = (),
        max_bytes: int = 10 << 20,
        backups: int = 5,
        redact: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        if max_bytes < 1 or backups < 0:
            raise ModelError("a file has room for 1 byte or more, and there are 0 or more older ones")
        self.path = Path(path)
        self.error: OSError | None = None
        self._source, self._cursor = source, source.follow(matches=matches)
        self._fields = _tree(fields)
        self._max, self._backups = max_bytes, backups
        self._redact = redact or redacted
        self._file = self.path.open("a", encoding="utf-8")
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="flow exporter", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            try:
                self._write(0.2)
            except ClosedError:  # the flows have ended
                return
            except OSError as error:
                _log.error("flows are not written to %s any more: %s", self.path, error)
                self.error = error
                return

    def _write(self, timeout: float) -> None:
        seen = self._cursor.take(timeout)
        for each in seen:
            event = FlowEvent.of(each) if isinstance(each, Flow) else FlowEvent(each, "", each.last)
            line = self._redact(event.to_dict())
            if self._fields and "flow" in line:
                line["flow"] = _masked(line["flow"], self._fields)
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
            if self._file.tell() >= self._max:
                self._rotate()
        if seen:
            self._file.flush()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._backups, 0, -1):
            before = self._older(number - 1)
            if before.exists():
                before.replace(self._older(number))
        self._file = self.path.open("w", encoding="utf-8")

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def close(self) -> None:
        """Write what has come until now, and stop."""
        if self._closing:
            return
        self._closing = True
        self._thread.join()
        if self.error is not None:  # which says it all
            with suppress(OSError):
                self._file.close()
            return
        try:
            self._cursor.end_at(self._source.span()[1])
            while not self._cursor.over:
                self._write(0)
        except ClosedError:
            pass
        finally:
            self._file.close()


def redacted(line: dict[str, Any]) -> dict[str, Any]:
    """Without what may be secret in a request: the query, who asks, cookies."""
    flow = line.get("flow", {})
    http = flow.get("l7", {}).get("http")
    if not http:
        return line
    if url := http.get("url"):
        http["url"] = _open(url)
        if "Summary" in flow:
            flow["Summary"] = flow["Summary"].replace(url, http["url"])
    for header in http.get("headers", ()):
        if header.get("key", "").lower() in _SECRET:
            header["value"] = _REDACTED
    return line


def _open(url: str) -> str:
    """What of an address is no secret."""
    url, query, _ = url.partition("?")
    scheme, slashes, rest = url.partition("//") if "://" in url else ("", "", url)
    place, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{place.rpartition('@')[2]}{slash}{path}{f'?{_REDACTED}' if query else ''}"


def _tree(paths: Iterable[str]) -> dict[str, Any]:
    """Paths, sorted into one another; None is below what is whole."""
    found: dict[str, Any] = {}
    for path in sorted(paths, key=len):  # what is whole comes before its parts
        *above, last = path.split(".")
        at, known = found, _below(Flow)
        for name in above:
            known = _below(known.get(name))
            at = at if at is None else at.setdefault(name, {})
        if last not in known:
            raise ModelError(f"{shown(path)} leads nowhere in a flow")
        if at is not None:
            at[last] = None
    return found


def _below(what: type[Message] | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The fields of a message, each with what is below it."""
    if what is None or isinstance(what, Mapping):
        return what or {}
    found: dict[str, Any] = {"drop_reason": None, "reply": None} if what is Flow else {}
    for each in parts(what):
        if each.kind is Kind.CHOICE:
            found |= each.of
        elif each.kind is Kind.BITS:
            found[each.name] = dict.fromkeys(each.of.__members__)
        else:
            whole = each.many or each.kind not in (Kind.ONE, Kind.WRAPPED)
            found[each.name] = None if whole else each.of
    return found


def _masked(value: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """What of a message is in the fields."""
    return {
        name: value[name] if below is None else _masked(value[name], below)
        for name, below in fields.items()
        if name in value
    }
