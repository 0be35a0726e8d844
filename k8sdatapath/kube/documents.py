"""Text of a manifest file into plain values: dicts, lists, text, numbers, true, false, None.

YAML is read as kubectl reads it, from the parser's events rather than through PyYAML's constructors. What
hostile or mistaken files do is then refused where it stands: a key given twice, anchors that expand without
end, nesting without end. Nothing recurses, no tag makes an object.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import Factory, define

from k8sdatapath.errors import ManifestError
from k8sdatapath.model.address import shown

if TYPE_CHECKING:
    import yaml

__all__ = ["MAX_DEPTH", "MAX_VALUES", "parse_json", "parse_yaml"]

MAX_DEPTH = 200
"""Lists and mappings inside each other. Custom resource definitions, the deepest in use, reach about 40."""

MAX_VALUES = 4_000_000
"""Values in one file, each use of an anchor counted with all that hangs on it."""

_WORDS: dict[str, bool | None] = {
    spelling: value
    for words, value in (("true yes on", True), ("false no off", False), ("null ~", None))
    for word in words.split()
    for spelling in (word, word.title(), word.upper())
} | {"": None}
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o[0-7_]+|(0)[0-7_]+|[1-9][0-9_]*|0)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_TELLING = frozenset(["", *"0123456789+-.~nNtTfFyYoO"])

_NO_KEY = "a key is text, not a list or mapping"

_LOOKED_AT = frozenset("tag:yaml.org,2002:" + kind for kind in ("int", "float", "bool", "null"))
_TAGS = _LOOKED_AT | {"!", *("tag:yaml.org,2002:" + kind for kind in ("str", "seq", "map"))}


def parse_json(text: str, where: str) -> list[Any]:
    """Read a JSON file: one document.

    :raises ManifestError: a syntax error, a key given twice, nesting without end.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise ManifestError(where, "", f"key {shown(twice)} is given twice")
        return made

    try:
        return [json.loads(text, object_pairs_hook=mapping)] if text.strip() else []
    except json.JSONDecodeError as error:
        raise ManifestError(where, f"line {error.lineno}, column {error.colno}", error.msg) from None
    except RecursionError:
        raise ManifestError(where, "", "lists and mappings are nested too deep") from None
    except ManifestError:
        raise
    except ValueError:
        raise ManifestError(where, "", "a number has thousands of digits") from None


def parse_yaml(text: str, where: str) -> list[Any]:
    """Read a YAML file: any number of documents.

    :raises ManifestError: a syntax error, a key given twice, a tag that is not plain data, anchors or
        nesting without end. Its ``path`` is line and column.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    reader = _Reader(where)
    try:
        for event in yaml.parse(text, Loader=loader):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise ManifestError(where, _position(error.problem_mark), reason) from None
    except yaml.YAMLError as error:
        raise ManifestError(where, "", getattr(error, "reason", "") or "this is not YAML") from None
    return reader.documents


@define
class _Open:
    """A list or mapping whose end has not come yet."""

    value: Any
    anchor: str | None
    before: int
    """Values in the file before it; what it holds is told from that when it ends."""
    wants_key: bool
    key: str | None = None
    bases: list[Any] = Factory(list)
    """What a merge key (``<<``) adds to this mapping."""


class _Reader:
    """Builds documents from parser events."""

    def __init__(self, where: str) -> None:
        import yaml

        self.documents: list[Any] = []
        self._where = where
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int, str | None]] = {}
        """What each stands for, the number of values in that, and of a scalar its text."""
        self._count = 0
        self._takers: dict[type[yaml.Event], Callable[[Any], None]] = {
            yaml.ScalarEvent: self._scalar,
            yaml.AliasEvent: self._alias,
            yaml.MappingStartEvent: self._mapping,
            yaml.SequenceStartEvent: self._list,
            yaml.MappingEndEvent: self._end,
            yaml.SequenceEndEvent: self._end,
            yaml.DocumentStartEvent: lambda event: self._anchors.clear(),
        }

    def take(self, event: yaml.Event) -> None:
        if taker := self._takers.get(type(event)):
            taker(event)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        text = event.value
        # (True, _): untagged and unquoted, so that its looks say what it is
        plain = event.implicit[0] or self._tag(event) in _LOOKED_AT
        value = _plain(text) if plain else text
        if event.anchor:
            self._anchors[event.anchor] = value, 1, text
        if self._wants_key:
            self._key(None if plain and text == "<<" else text, event)
        else:
            self._put(value, 1, event)

    @property
    def _wants_key(self) -> bool:
        return bool(self._open) and self._open[-1].wants_key

    def _key(self, text: str | None, event: yaml.Event) -> None:
        """Keys are text, whatever they look like, as they are in JSON. None is the merge key."""
        mapping = self._open[-1]
        if text in mapping.value:
            raise self._error(event, f"key {shown(text)} is given twice")
        mapping.key = text
        mapping.wants_key = False

    def _alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor not in self._anchors:
            raise self._error(event, f"there is no anchor {shown(event.anchor)} before this")
        value, size, text = self._anchors[event.anchor]
        if not self._wants_key:
            self._put(value, size, event)
        elif text is not None:
            self._key(text, event)
        else:
            raise self._error(event, _NO_KEY)

    def _mapping(self, event: yaml.MappingStartEvent) -> None:
        self._start(_Open({}, event.anchor, self._count, wants_key=True), event)

    def _list(self, event: yaml.SequenceStartEvent) -> None:
        self._start(_Open([], event.anchor, self._count, wants_key=False), event)

    def _start(self, opened: _Open, event: yaml.CollectionStartEvent) -> None:
        self._tag(event)
        if self._wants_key:
            raise self._error(event, _NO_KEY)
        if len(self._open) >= MAX_DEPTH:
            raise self._error(event, f"more than {MAX_DEPTH} lists and mappings inside each other")
        self._open.append(opened)

    def _end(self, event: yaml.CollectionEndEvent) -> None:
        done = self._open.pop()
        for base in done.bases:
            for key, value in base.items():
                done.value.setdefault(key, value)
        size = self._count - done.before + 1
        if done.anchor:
            self._anchors[done.anchor] = done.value, size, None
        self._count = done.before
        self._put(done.value, size, event)

    def _put(self, value: Any, size: int, event: yaml.Event) -> None:
        self._count += size
        if self._count > MAX_VALUES:
            raise self._error(event, f"more than {MAX_VALUES} values, what aliases stand for included")
        if not self._open:
            self.documents.append(value)
            return
        into = self._open[-1]
        if isinstance(into.value, list):
            into.value.append(value)
            return
        if into.key is not None:
            into.value[into.key] = value
        else:
            bases = value if isinstance(value, list) else [value]
            if not all(isinstance(base, dict) for base in bases):
                raise self._error(event, "only mappings can be merged by <<")
            into.bases += bases
        into.wants_key = True

    def _tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> str | None:
        tag: str | None = event.tag
        if tag is not None and tag not in _TAGS:
            raise self._error(event, f"tag {shown(tag)} is not plain data")
        return tag

    def _error(self, event: yaml.Event, reason: str) -> ManifestError:
        return ManifestError(self._where, _position(event.start_mark), reason)


def _plain(text: str) -> Any:
    """What unquoted text is, by the rules of YAML 1.1 as kubectl has them."""
    if text[:1] not in _TELLING:
        return text
    if text in _WORDS:
        return _WORDS[text]
    digits = text.replace("_", "")
    try:
        if match := _INT.fullmatch(text):
            return int(digits, 8 if match[1] else 0)
        return float(digits) if _FLOAT.fullmatch(text) else text
    except ValueError:  # thousands of digits, or none after 0x
        return text


def _position(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
