"""Extended regular expressions, as HTTP rules are written in: read, checked and kept as a tree.

The syntax is RE2's as far as it can be decided byte by byte: literals, ``.``, sets, groups, alternatives,
counted and uncounted repeats, ``^`` and ``$``, Perl's ``\\d \\s \\w``, the flags ``i`` and ``s``. What looks
back (``\\1``), looks around (``(?=``), or asks for word bounds or Unicode properties is refused, with its
column. An expression says what the *whole* of a text is, and is about ASCII: a byte above 127 matches
nothing, not even ``.``.

Source: https://github.com/google/re2/wiki/Syntax; POSIX.1-2024, section 9.4.
"""

from __future__ import annotations

from typing import TypeAlias

from attrs import field, frozen

from k8sdatapath.errors import RegexError

__all__ = ["Anchor", "Bytes", "Choice", "Regex", "Repeat", "Series", "Tree"]

#: As in RE2, of repeats inside one another their product. Beyond it an automaton has that many states for one
#: expression.
MAX_REPEAT = 1000
MAX_ENDLESS = 10
"""Repeats without end inside one another: each doubles the time of :meth:`Regex.matches`."""
MAX_DEPTH = 100
MAX_LENGTH = 8192

_ASCII = (1 << 128) - 1
_SPECIAL = frozenset("\\.+*?()|[]{}^$")


@frozen
class Bytes:
    """Any one byte of a set.

    :ivar mask: bit ``n`` says whether byte ``n`` is in the set.
    """

    mask: int


@frozen
class Series:
    """Parts one after another; no parts match the empty text."""

    parts: tuple[Tree, ...]


@frozen
class Choice:
    """One of several parts."""

    parts: tuple[Tree, ...]


@frozen
class Repeat:
    """A part ``low`` to ``high`` times; ``high`` None: without end."""

    part: Tree
    low: int
    high: int | None


@frozen
class Anchor:
    """The beginning of the text, or its end."""

    end: bool


Tree: TypeAlias = Bytes | Series | Choice | Repeat | Anchor


@frozen
class Regex:
    """An expression that was understood.

    :raises RegexError: it was not, or is not supported; says the column.
    """

    pattern: str
    tree: Tree = field(init=False, eq=False, repr=False)

    @tree.default
    def _read(self) -> Tree:
        return _Reader(self.pattern).read()

    @classmethod
    def literal(cls, text: str) -> Regex:
        """The expression that matches just this text."""
        return cls("".join("\\" + char if char in _SPECIAL else char for char in text))

    def matches(self, text: bytes) -> bool:
        """Whether it is what the whole of a text is; see ``datapath.automaton`` for many at once."""
        return len(text) in _ends(self.tree, text, {0})


def _ends(tree: Tree, text: bytes, begins: set[int]) -> set[int]:
    """Where a part of an expression can end that begins at one of some places."""
    match tree:
        case Bytes(mask):
            return {at + 1 for at in begins if at < len(text) and mask >> text[at] & 1}
        case Anchor(end):
            return begins & {len(text) if end else 0}
        case Choice(parts):
            return {at for part in parts for at in _ends(part, text, begins)}
        case Series(parts):
            for part in parts:
                begins = _ends(part, text, begins)
            return begins
        case Repeat(part, low, high):
            for _ in range(low):
                begins = _ends(part, text, begins)
            found, new, left = begins, begins, high
            while new and (left is None or left > low):
                new = _ends(part, text, new) - found
                found = found | new
                left = left and left - 1
            return found


def _nested(tree: Tree) -> tuple[int, int]:
    """How often the innermost part is repeated by numbers, and how many repeats without end are around it."""
    match tree:
        case Series(parts) | Choice(parts):
            found = [(1, 0), *map(_nested, parts)]
            return max(times for times, _ in found), max(endless for _, endless in found)
        case Repeat(part, low, high):
            times, endless = _nested(part)
            return times * max(low, high or 1), endless + (high is None)
    return 1, 0


def _span(first: str, last: str) -> int:
    return (1 << ord(last) + 1) - (1 << ord(first))


def _of(chars: str) -> int:
    return sum(1 << ord(char) for char in chars)


_DIGIT, _LOWER, _UPPER = _span("0", "9"), _span("a", "z"), _span("A", "Z")
_ALPHA = _LOWER | _UPPER
_PERL = {"d": _DIGIT, "w": _DIGIT | _ALPHA | _of("_"), "s": _of("\t\n\f\r ")}
_ESCAPES = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_CLASSES = {
    "alnum": _DIGIT | _ALPHA,
    "alpha": _ALPHA,
    "ascii": _ASCII,
    "blank": _of("\t "),
    "cntrl": _span("\0", "\x1f") | 1 << 127,
    "digit": _DIGIT,
    "graph": _span("!", "~"),
    "lower": _LOWER,
    "print": _span(" ", "~"),
    "punct": _span("!", "~") & ~(_DIGIT | _ALPHA),
    "space": _of("\t\n\v\f\r "),
    "upper": _UPPER,
    "word": _DIGIT | _ALPHA | _of("_"),
    "xdigit": _DIGIT | _span("a", "f") | _span("A", "F"),
}


def _both_cases(mask: int) -> int:
    shift = ord("a") - ord("A")
    return mask | (mask & _UPPER) << shift | (mask & _LOWER) >> shift


class _Reader:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.depth = 0
        self.fold = False
        self.dot_newline = False

    def read(self) -> Tree:
        if len(self.pattern) > MAX_LENGTH:
            raise RegexError(self.pattern[:40] + "...", MAX_LENGTH, f"longer than {MAX_LENGTH} characters")
        for at, char in enumerate(self.pattern):
            if not char.isascii():
                raise RegexError(self.pattern, at, f"{char!r} is not ASCII: write it percent-encoded")
        tree = self.choice()
        if self.at < len(self.pattern):
            raise self.wrong("a ) without its (")
        return tree

    def wrong(self, reason: str, at: int | None = None) -> RegexError:
        return RegexError(self.pattern, self.at if at is None else at, reason)

    def next(self) -> str:
        """The next character, or nothing at the end."""
        return self.pattern[self.at : self.at + 1]

    def take(self, text: str) -> bool:
        """Go past a text if it comes next."""
        if not self.pattern.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def choice(self) -> Tree:
        parts = [self.series()]
        while self.take("|"):
            parts.append(self.series())
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def series(self) -> Tree:
        parts: list[Tree] = []
        while self.next() not in ("", "|", ")"):
            at = self.at
            if self.bounds()[0] is not None:
                raise self.wrong("nothing to repeat", at)
            part = self.atom()
            if part is not None:
                parts.append(self.repeated(part))
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def atom(self) -> Tree | None:
        """One thing that can be repeated; None if it was flags only."""
        at, char = self.at, self.next()
        self.at += 1
        if char == "(":
            return self.group(at)
        if char == "[":
            return Bytes(self.folded(self.set(at)))
        if char == ".":
            return Bytes(_ASCII if self.dot_newline else _ASCII & ~_of("\n"))
        if char in "^$":
            return Anchor(end=char == "$")
        if char == "\\":
            if self.next() and self.next() in "Az":
                self.at += 1
                return Anchor(end=self.pattern[self.at - 1] == "z")
            return Bytes(self.folded(self.escape(at)))
        return Bytes(self.folded(_of(char)))

    def folded(self, mask: int) -> int:
        return _both_cases(mask) if self.fold else mask

    def group(self, at: int) -> Tree | None:
        if self.depth == MAX_DEPTH:
            raise self.wrong(f"more than {MAX_DEPTH} groups inside one another", at)
        flags = None
        if self.take("?"):
            if self.take("P<"):
                self.name(at)
            else:
                flags = self.flags(at)
                if self.take(")"):
                    self.fold, self.dot_newline = flags
                    return None
                self.take(":")
        before = self.fold, self.dot_newline
        self.fold, self.dot_newline = flags or before
        self.depth += 1
        tree = self.choice()
        self.depth -= 1
        self.fold, self.dot_newline = before
        if not self.take(")"):
            raise self.wrong("a ( without its )", at)
        return Series((tree,))

    def name(self, at: int) -> None:
        name, found, _ = self.pattern[self.at :].partition(">")
        if not found or not name.replace("_", "a").isalnum():
            raise self.wrong("a group with a name that is none", at)
        self.at += len(name) + 1

    def flags(self, at: int) -> tuple[bool, bool]:
        fold, dot_newline, on = self.fold, self.dot_newline, True
        begin = self.at
        while self.next() not in ("", ":", ")"):
            char = self.next()
            if char == "i":
                fold = on
            elif char == "s":
                dot_newline = on
            elif char == "-" and on and self.pattern[self.at + 1 : self.at + 2] in ("i", "s"):
                on = False
            else:
                raise self.wrong(f"(?{self.pattern[begin : self.at + 1]} is not supported", at)
            self.at += 1
        if not self.next():
            raise self.wrong("a ( without its )", at)
        if self.at == begin and self.next() == ")":
            raise self.wrong("(?) has no flags", at)
        return fold, dot_newline

    def repeated(self, part: Tree) -> Tree:
        at = self.at
        low, high = self.bounds()
        if low is None:
            return part
        self.take("?")  # as few as possible: it is the same texts
        after = self.at
        if self.bounds()[0] is not None:
            raise self.wrong("a repeat of a repeat: put the first into a group", after)
        if max(low, high or 0) > MAX_REPEAT:
            raise self.wrong(f"more than {MAX_REPEAT} times", at)
        if high is not None and high < low:
            raise self.wrong(f"from {low} down to {high} times", at)
        found = Repeat(part, low, high)
        times, endless = _nested(found)
        if times > MAX_REPEAT:
            raise self.wrong(f"more than {MAX_REPEAT} times, with the repeats inside", at)
        if endless > MAX_ENDLESS:
            raise self.wrong(f"more than {MAX_ENDLESS} repeats without end inside one another", at)
        return found

    def bounds(self) -> tuple[int | None, int | None]:
        """What repeats the thing before, if something does: from, to."""
        char = self.next()
        if char and char in "*+?":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        if char != "{":
            return None, None
        inside, found, _ = self.pattern[self.at + 1 :].partition("}")
        low, comma, high = inside.partition(",")
        if not (found and low.isdigit() and (not high or high.isdigit())):
            return None, None  # a brace like any other character
        self.at += len(inside) + 2
        return int(low), int(low) if not comma else int(high) if high else None

    def set(self, at: int) -> int:
        mask, outside = 0, self.take("^")
        begin = self.at
        while self.at == begin or self.next() != "]":
            if not self.next():
                raise self.wrong("a [ without its ]", at)
            mask |= self.item(at)
        self.at += 1
        return _ASCII & ~self.folded(mask) if outside else mask

    def item(self, begin: int) -> int:
        """A class, or a character, or characters from one to another."""
        at = self.at
        name, ends, _ = self.pattern[at + 2 :].partition(":]")
        if ends and self.take("[:"):  # without an end they are characters like any other
            outside = name.startswith("^")
            if name.lstrip("^") not in _CLASSES:
                raise self.wrong(f"no class is called [:{name}:]", at)
            self.at += len(name) + 2
            mask = _CLASSES[name.lstrip("^")]
            return _ASCII & ~mask if outside else mask
        first = self.one(begin)
        if self.next() != "-" or self.pattern[self.at + 1 : self.at + 2] in ("]", ""):
            return first
        self.at += 1
        last = self.one(begin)
        if first.bit_count() != 1 or last.bit_count() != 1 or last < first:
            raise self.wrong(f"{self.pattern[at : self.at]} is no range", at)
        return (last << 1) - first

    def one(self, begin: int) -> int:
        at, char = self.at, self.next()
        if not char:
            raise self.wrong("a [ without its ]", begin)
        self.at += 1
        return self.escape(at) if char == "\\" else _of(char)

    def escape(self, at: int) -> int:
        """What a backslash, which was read, makes of what follows."""
        char = self.next()
        self.at += 1
        if not char:
            raise self.wrong("a \\ with nothing behind it", at)
        if char in _PERL:
            return _PERL[char]
        if char.lower() in _PERL:
            return _ASCII & ~_PERL[char.lower()]
        if char in _ESCAPES:
            return 1 << _ESCAPES[char]
        if char == "x":
            digits = self.pattern[self.at : self.at + 2]
            try:
                number = int(digits, 16) if len(digits) == 2 and digits.isalnum() else -1
            except ValueError:
                number = -1
            if not 0 <= number < 128:
                raise self.wrong("\\x wants two hexadecimal digits, at most 7f", at)
            self.at += 2
            return 1 << number
        if char.isalnum() or char == "_":
            raise self.wrong(f"\\{char} is not supported", at)
        return _of(char)
