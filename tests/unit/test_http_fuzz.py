"""h11, which shares nothing with us, sees the requests that the oracle allows, and no others."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath.model.http import judge
from k8sdatapath.model.http_rules import HTTPRule
from tests.support.http_exchanges import EXCHANGES, RULES
from tests.support.http_fuzz import built, damaged, requests_of


@settings(max_examples=1500)
@given(st.one_of(built, damaged()), st.sampled_from([(HTTPRule(),), RULES]))
def test_h11_sees_what_the_oracle_does(data, rules):
    verdict = judge(data, rules)
    passed = data if verdict.reason is None else data[: verdict.by - 1]
    seen = requests_of(passed)
    assert seen == [(each.method, each.target) for each in verdict.allowed][: len(seen)]


def test_h11_sees_all_of_the_corpus_that_is_allowed():
    for each in EXCHANGES:
        if each.reason is None:
            seen = requests_of(each.data)
            assert seen == [(one.method, one.target) for one in judge(each.data, RULES).allowed], each
