"""Log lines: one JSON object each, for programs; or a sentence with what it is about, for people."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

from k8sdatapath.agent.values import LogFormat

__all__ = ["set_up"]

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Formatter(logging.Formatter):
    """What is common to both: UTC times, and what ``extra=`` was given."""

    def when(self, record: logging.LogRecord) -> str:
        """When it was, as RFC 3339."""
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z"

    def about(self, record: logging.LogRecord) -> dict[str, object]:
        """What it is about."""
        told = {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return told


class JsonFormatter(_Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        line = {
            "time": self.when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.about(record),
        }
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(_Formatter):
    """A sentence, and what it is about behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """A line, and a traceback below it if there is one."""
        about = self.about(record)
        trace = about.pop("exception", "")
        told = "".join(f" {name}={value}" for name, value in about.items() if value not in ("", [], None))
        line = f"{self.when(record)} {record.levelname.lower()} {record.getMessage()}{told}"
        return f"{line}\n{trace}" if trace else line


class _AgentHandler(logging.StreamHandler[TextIO]):
    """What :func:`set_up` has set up, and may put another in place of."""


def set_up(level: str, form: LogFormat, stream: TextIO | None = None) -> None:
    """Log to a stream from now on, by default standard error; may be called again."""
    handler = _AgentHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _AgentHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
