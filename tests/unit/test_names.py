"""DNS names and patterns of them: what fits, in Cilium's reading."""

from __future__ import annotations

import pytest

from k8sdatapath.errors import ModelError
from k8sdatapath.model.names import NamePattern, name_labels

FITS = {
    "bank.example": (["bank.example", "BANK.example."], ["www.bank.example", "example", "bankxexample"]),
    "*.example": (["bank.example", "a-1_b.example"], ["example", "www.bank.example", "bank.example.org"]),
    "**.example": (["bank.example", "www.bank.example"], ["example", "bankexample", ".example"]),
    "www-*.*.example": (["www-.bank.example", "www-1.a.example"], ["www.bank.example", "www-1.example"]),
    "a*b*c.example": (["abc.example", "axxbyyc.example"], ["acb.example", "ab.example", "abbc.example.c"]),
    "ab*ba.example": (["abba.example", "abxba.example"], ["aba.example"]),
    "*": (["bank.example", "x", "."], ["shop/web", "a b"]),
}


@pytest.mark.parametrize("pattern", FITS)
def test_what_fits(pattern):
    fitting, others = FITS[pattern]
    assert [name for name in (*fitting, *others) if NamePattern(pattern).matches(name)] == fitting


@pytest.mark.parametrize(
    "text", ["", "a b", "ba%k.example", "x" * 256, "*" * 17, "a..b", ".a", "a..", None, 7]
)
def test_what_is_none(text):
    with pytest.raises(ModelError):
        NamePattern(text)


def test_one_that_is_hard_to_match_costs_no_more_than_others():
    """Sixteen stars, against a name that nearly fits: as a regular expression this would not end."""
    assert not NamePattern("*a" * 16 + ".x").matches("a" * 60 + "b.x")


def test_an_address_is_known_by_the_patterns_that_its_names_fit():
    patterns = [NamePattern(each) for each in ("*.example", "bank.example", "other.example", "*.example")]
    assert list(name_labels(patterns, ["bank.example"])) == ["fqdn:*.example=", "fqdn:bank.example="]
    assert list(name_labels(patterns, [])) == []
