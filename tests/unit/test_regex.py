"""Regular expressions mean what RE2 says they mean, alone and merged; what is not supported is refused."""

from __future__ import annotations

import pytest
import re2
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from k8sdatapath.datapath.automaton import automaton
from k8sdatapath.errors import CapacityError, RegexError
from k8sdatapath.model.regex import Regex

QUIET = re2.Options()
QUIET.log_errors = False

#: Pieces that a pattern is put together from, well or badly.
PIECES = (
    *"abA0_-/.^$|()[]{}*+?,:=\\ ",
    *(
        "(?:",
        "(?i)",
        "(?i:",
        "(?s)",
        "(?-i:",
        "(?P<n>",
        "[^",
        "[a-c]",
        "[[:alpha:]]",
        "[^[:^digit:]]",
        "[]a]",
    ),
    *(
        "{2}",
        "{0,1}",
        "{1,}",
        "{,2}",
        "*?",
        "\\d",
        "\\W",
        "\\s",
        "\\.",
        "\\x41",
        "\\n",
        "\\A",
        "\\z",
        "\\b",
        "\\1",
    ),
    *(".*", "GET", "/v[0-9]+"),
)
#: Why we refuse some of what RE2 takes.
LEFT_OUT = ("is not supported", "nothing to repeat", "is no range")
patterns = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
texts = st.text(st.sampled_from("abcAB01_-/.^$|()[]{},:\\ \n=*+?GET v\x7f"), max_size=8)
atoms = ("a", "b", "A", "0", "/", ".", "[ab]", "[^a]", "\\d", "\\w", "[A-C0-]", "", "^", "$")
repeats = ("*", "+", "?", "{2}", "{1,3}", "{0,}", "+?")
regular = st.recursive(
    st.sampled_from(atoms),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        st.tuples(inner, st.sampled_from(repeats)).map("({0[0]}){0[1]}".format),
        inner.map("(?i:{})".format),
    ),
    max_leaves=12,
)
ascii_only = st.characters(max_codepoint=127)


def of_re2(pattern: str) -> object:
    try:
        return re2.compile(pattern, QUIET)
    except re2.error:
        return None


@settings(max_examples=600)
@given(patterns, st.lists(texts, max_size=8))
@example("[[:]", ["[", ":", "a"])
@example("[^[:]]", ["a]", ":]"])
def test_what_is_understood_is_what_re2_understands(pattern, subjects):
    theirs, reason = of_re2(pattern), ""
    try:
        ours = automaton([Regex(pattern)], max_states=4000)
    except RegexError as error:
        reason = error.reason
    if reason:
        assert theirs is None or any(each in reason for each in LEFT_OUT), pattern
        return
    assert theirs is not None, pattern
    for text in subjects:
        assert bool(ours.match(text.encode())) == bool(theirs.fullmatch(text)), (pattern, text)


@settings(max_examples=600)
@given(st.lists(regular, min_size=1, max_size=5), st.data())
def test_merged_expressions_match_as_each_does_alone(found, data):
    ours = automaton([Regex(pattern) for pattern in found])
    theirs = [of_re2(pattern) for pattern in found]
    assume(None not in theirs)
    likely = [  # hypothesis may take two of one pattern for one, or not: as it remembers them
        st.from_regex(pattern, fullmatch=True, alphabet=st.characters(max_codepoint=127))
        for pattern in dict.fromkeys(found)
    ]
    for text in data.draw(st.lists(st.one_of(texts, *likely), max_size=6)):
        wanted = {number for number, each in enumerate(theirs) if each.fullmatch(text)}
        assert ours.match(text.encode()) == tuple(sorted(wanted)), (found, text)


def test_bytes_beyond_ascii_match_nothing():
    ours = automaton([Regex(".*"), Regex("[^a]"), Regex("\\W+")])
    assert ours.match(b"x") == (0, 1)
    assert ours.match("é".encode()) == ours.match(b"\xff") == ()


def test_a_literal_is_itself_and_nothing_else():
    ours = automaton([Regex.literal("/a.b+(c)"), Regex.literal("")])
    assert ours.match(b"/a.b+(c)") == (0,)
    assert ours.match(b"/axb+(c)") == ()
    assert ours.match(b"") == (1,)


@pytest.mark.parametrize(
    ("pattern", "column", "reason"),
    [
        ("a(b", 1, r"a \( without its \)"),
        ("ab)", 2, r"a \) without its \("),
        ("a[b", 1, r"a \[ without its \]"),
        ("*a", 0, "nothing to repeat"),
        ("(?i)*", 4, "nothing to repeat"),
        ("{2}", 0, "nothing to repeat"),
        ("a**", 2, "a repeat of a repeat"),
        ("a{3,2}", 1, "from 3 down to 2"),
        ("a{1001}", 1, "more than 1000 times"),
        ("((a{50}){50}){50}", 8, "more than 1000 times, with the repeats inside"),
        ("((a{10}|b){10,}){11}", 16, "more than 1000 times, with the repeats inside"),
        ("(" * 11 + "a*" + "b*)*" * 11, 52, "more than 10 repeats without end inside one another"),
        ("(a)\\1", 3, r"\\1 is not supported"),
        ("a\\b", 1, r"\\b is not supported"),
        ("\\pL", 0, r"\\p is not supported"),
        ("a(?=b)", 1, r"\(\?= is not supported"),
        ("(?m)a", 0, r"\(\?m is not supported"),
        ("[[:letter:]]", 1, "no class is called"),
        ("[z-a]", 1, "z-a is no range"),
        ("[a-\\d]", 1, "is no range"),
        ("\\xg0", 0, "two hexadecimal digits"),
        ("\\", 0, "nothing behind it"),
        ("/caf\u00e9", 4, "is not ASCII"),
        ("(" * 101 + ")" * 101, 100, "more than 100 groups"),
        ("a" * 8193, 8192, "longer than 8192"),
    ],
)
def test_what_is_refused_is_refused_with_its_column(pattern, column, reason):
    with pytest.raises(RegexError, match=reason) as caught:
        Regex(pattern)
    assert caught.value.column == column


def test_a_thousand_rules_are_one_small_automaton():
    rules = [f"(GET|POST) /api/v[0-9]+/thing{number}/[^/]+(/.*)?" for number in range(1000)]
    ours = automaton([Regex(rule) for rule in rules])
    assert ours.match(b"POST /api/v2/thing317/x/y") == (317,)
    assert ours.match(b"POST /api/v2/thing317/") == ()
    assert ours.states < 20_000


@pytest.mark.parametrize("bomb", ["(a|b)*a(a|b){40}", "((a{50}){20}b)" * 125, "(.*a){30}(.{20}b){9}"])
def test_a_regex_bomb_is_refused(bomb):
    with pytest.raises(CapacityError, match=r"states of an automaton.*smaller repeats"):
        automaton([Regex("/ok"), Regex(bomb)], max_work=1 << 20)


def test_no_expressions_match_nothing():
    assert automaton([]).match(b"") == automaton([]).match(b"a") == ()


@given(regular, st.lists(texts, min_size=1, max_size=8))
def test_one_expression_alone_matches_what_the_automaton_does(pattern, subjects):
    expression = Regex(pattern)
    merged = automaton([expression])
    for subject in subjects:
        assert expression.matches(subject.encode()) is bool(merged.match(subject.encode()))
