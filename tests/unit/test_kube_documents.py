"""YAML means what it means to kubectl."""

from __future__ import annotations

import contextlib
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube.documents import _FLOAT, MAX_DEPTH, MAX_VALUES, parse_json, parse_yaml


def one(text: str):
    [document] = parse_yaml(text, "x.yaml")
    return document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("yes", True),
        ("off", False),
        ("80", 80),
        ("-80", -80),
        ("+8_0", 80),
        ("0x50", 80),
        ("0b1010000", 80),
        ("0120", 80),
        ("0o120", 80),
        ("0", 0),
        ("80.5", 80.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("10.1", 10.1),
        ("10.96.0.10", "10.96.0.10"),
        ("fd00::1", "fd00::1"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("0x", "0x"),
        ("089", 89.0),
        ("+", "+"),
        ("none", "none"),
        ("tru", "tru"),
        ("y", "y"),
        ("'80'", "80"),
        ('"true"', "true"),
        ("!!str 80", "80"),
        ("! 80", 80),
        ('!!int "80"', 80),
        ("9" * 5000, "9" * 5000),
    ],
    ids=lambda value: str(value)[:20] or "nothing",
)
def test_looks_of_unquoted_text_say_what_it_is(text: str, value: object):
    assert one(f"a: {text}") == {"a": value}
    assert type(one(f"a: {text}")["a"]) is type(value)


def test_keys_are_text():
    assert one("{80: a, true: b, ~: c}") == {"80": "a", "true": "b", "~": "c"}


def test_anchors_aliases_and_merges():
    text = """
    base: &base {port: 80, protocol: TCP}
    more: &more {name: x}
    same: *base
    text: [&t web, *t]
    merged: {<<: *base, port: 81}
    both: {<<: [*more, *base], name: y}
    """
    document = one(text)
    assert document["same"] == {"port": 80, "protocol": "TCP"}
    assert document["text"] == ["web", "web"]
    assert document["merged"] == {"port": 81, "protocol": "TCP"}
    assert document["both"] == {"name": "y", "port": 80, "protocol": "TCP"}


def test_an_alias_is_a_key_where_a_key_stands():
    assert one("kind: &k type\nother: x\n*k : y") == {"kind": "type", "other": "x", "type": "y"}
    assert one("&k name: x\nsame: *k") == {"name": "x", "same": "name"}
    assert one("[&k 0x50, {*k : y}]") == [80, {"0x50": "y"}]
    assert one("[&k <<, {*k : {a: 1}}]") == ["<<", {"<<": {"a": 1}}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &k web\nweb: 1\n*k : 2", "line 3, column 1: key 'web' is given twice"),
        ("- &m {a: 1}\n- {*m : {b: 2}}", "line 2, column 4: a key is text"),
        ("- &m {a: 1}\n- {x: 1, *m : {b: 2}}", "line 2, column 10: a key is text"),
        ("- &l [a]\n- ? *l\n  : 1", "line 2, column 5: a key is text"),
    ],
)
def test_an_alias_that_cannot_be_a_key(text: str, said: str):
    with pytest.raises(ManifestError, match=said):
        one(text)


def test_documents_are_apart():
    assert parse_yaml("---\na: 1\n---\n# nothing\n---\nb: 2\n...\n", "x") == [{"a": 1}, None, {"b": 2}]
    assert parse_yaml("", "x") == parse_yaml("# only a remark\n", "x") == parse_json(" \n", "x") == []
    with pytest.raises(ManifestError, match="no anchor"):
        parse_yaml("a: &a 1\n---\nb: *a\n", "x")


def test_limits_are_where_they_are_said_to_be():
    assert one("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ManifestError, match=f"more than {MAX_DEPTH}"):
        one("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    leaves, uses = 1000, MAX_VALUES // 1001 - 1
    ten = f"a: &a [{'x, ' * leaves}]\nb: [{{}}]"
    assert len(one(ten.format(", ".join(["*a"] * (uses - 1))))["b"]) == uses - 1
    with pytest.raises(ManifestError, match=f"more than {MAX_VALUES} values"):
        one(ten.format(", ".join(["*a"] * (uses + 2))))


# kubectl takes 0E0 for a number; PyYAML does not, and writes such a text without quotes
plain_text = st.text(st.characters(codec="utf-8")).filter(lambda text: not _FLOAT.fullmatch(text))

plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_text,
    lambda inner: st.lists(inner) | st.dictionaries(plain_text, inner),
    max_leaves=20,
)


@given(plain_data)
def test_what_was_written_is_read(value):
    assert parse_yaml(yaml.safe_dump({"a": value}), "x") == [{"a": value}]
    assert parse_json(json.dumps({"a": value}), "x") == [{"a": value}]


@given(st.text() | st.text(st.sampled_from("[]{}:,-?&*!|>'\"%@` \n\tab1<#~")))
def test_any_text_is_read_or_refused(text: str):
    for parse in (parse_yaml, parse_json):
        with contextlib.suppress(ManifestError):
            parse(text, "x")


def test_without_libyaml_the_same_is_read(monkeypatch: pytest.MonkeyPatch):
    text = "a: &x [1, '1', {b: 0x10, <<: {c: ~}}]\n---\nd: *x\n"
    with_it = parse_yaml(text.replace("*x", "x"), "x")
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert parse_yaml(text.replace("*x", "x"), "x") == with_it
    for wrong, said in {
        text: "line 3, column 4: there is no anchor",
        "a: b: c": "line 1, column 5",
        "a: \0": "x: ",
    }.items():
        with pytest.raises(ManifestError, match=said):
            parse_yaml(wrong, "x")
