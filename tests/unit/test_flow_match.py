"""Filters of flows: what each field finds."""

from __future__ import annotations

import time
from typing import Any

import pytest
from attrs import evolve, fields

from k8sdatapath.errors import ModelError
from k8sdatapath.model.flow import (
    HTTP,
    DropReason,
    EventType,
    Flow,
    L7FlowType,
    Layer7,
    MonitorEvent,
    Verdict,
)
from k8sdatapath.model.flow_filter import FlowFilter
from k8sdatapath.model.flow_match import MAX_FILTERS, matcher
from k8sdatapath.model.message import parts
from tests.support.flows import CASES, FULL, REFUSED, RESOLVED


def found(flow: Flow, **given: Any) -> bool:
    return matcher([FlowFilter.from_dict(given)])(flow)


def test_there_are_cases_for_every_field() -> None:
    assert set(CASES) == {each.name for each in parts(FlowFilter)} - {"experimental"}


def test_the_full_flow_says_everything() -> None:
    assert [each.name for each in fields(Flow) if not getattr(FULL, each.name)] == []


@pytest.mark.parametrize("field", CASES)
def test_a_field_finds_what_it_says(field: str) -> None:
    hits, misses = CASES[field]
    for value in hits:
        assert found(FULL, **{field: [value]}), value
    for value in misses:
        assert not found(FULL, **{field: [value]}), value
    if hits and misses:
        assert found(FULL, **{field: [misses[0], hits[0]]})


def test_all_fields_have_to_match() -> None:
    assert found(FULL, verdict=["DROPPED"], destination_port=["8080"])
    assert not found(FULL, verdict=["DROPPED"], destination_port=["80"])


def test_questions_to_name_servers_are_found() -> None:
    assert found(RESOLVED, dns_query=["^db[.]"], protocol=["dns"], ip_version=["IPv6"])
    assert not found(RESOLVED, dns_query=["^shop"])


@pytest.mark.parametrize(
    ("reply", "verdict", "is_reply"),
    [
        (None, Verdict.FORWARDED, None),
        (None, Verdict.DROPPED, False),
        (True, Verdict.FORWARDED, True),
        (False, Verdict.FORWARDED, False),
    ],
)
def test_what_was_dropped_counts_as_no_reply(
    reply: bool | None, verdict: Verdict, is_reply: bool | None
) -> None:
    flow = evolve(FULL, is_reply=reply, verdict=verdict)
    assert [value for value in (True, False) if found(flow, reply=[value])] == (
        [] if is_reply is None else [is_reply]
    )


@pytest.mark.parametrize(
    ("event", "reason", "is_verdict"),
    [
        (MonitorEvent.POLICY_VERDICT, DropReason.DROP_REASON_UNKNOWN, True),
        (MonitorEvent.DROP, DropReason.POLICY_DENIED, True),
        (MonitorEvent.DROP, DropReason.POLICY_DENY, True),
        (MonitorEvent.DROP, DropReason.UNSUPPORTED_L3_PROTOCOL, False),
        (MonitorEvent.TRACE, DropReason.DROP_REASON_UNKNOWN, False),
    ],
)
def test_denials_are_told_once_and_are_found_as_drops_and_as_verdicts(
    event: MonitorEvent, reason: DropReason, is_verdict: bool
) -> None:
    flow = evolve(FULL, event_type=EventType(event, reason), drop_reason=reason)
    assert found(flow, event_type=[{"type": int(MonitorEvent.POLICY_VERDICT)}]) is is_verdict
    assert found(flow, event_type=[{"type": int(event)}])
    assert not found(flow, event_type=[{"type": int(MonitorEvent.L7)}])


def test_ends_that_nobody_knows_match_no_filter_of_them() -> None:
    nobody = Flow()
    for field, (hits, _) in CASES.items():
        for value in hits:
            if value != {}:
                assert not found(nobody, **{field: [value]}), field


def test_what_is_denied_is_taken_from_what_is_allowed() -> None:
    dropped = FlowFilter(verdict=(Verdict.DROPPED,))
    other = FlowFilter(source_identity=(1,))
    assert [matcher(*lists)(FULL) for lists in ([], [[dropped]], [[], [dropped]], [[other, dropped]])] == [
        True,
        True,
        False,
        True,
    ]
    assert not matcher([dropped], [dropped])(FULL)
    assert not matcher([dropped], [other, dropped])(FULL)


@pytest.mark.parametrize(("given", "wrong"), REFUSED, ids=range(len(REFUSED)))
def test_filters_that_cannot_be_are_refused_with_their_field(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ModelError) as caught:
        matcher([], [FlowFilter(), FlowFilter.from_dict(given)])
    assert wrong in str(caught.value)
    assert str(caught.value).startswith("deny[1].")
    assert len(str(caught.value)) < 400


def test_there_is_a_limit_of_filters() -> None:
    with pytest.raises(ModelError, match=r"allow: 257 filters are more than 256"):
        matcher([FlowFilter()] * (MAX_FILTERS + 1))


@pytest.mark.parametrize(
    ("each", "count", "wrong"),
    [
        ({"source_pod": ["a"] * 1000}, 5, "5000 values in all are more than 4096"),
        ({"source_label": ["a," * 2000 + "a"]}, 17, "68017 characters in all are more than 65536"),
        (
            {"http_header": [{"key": "k", "value": "a" * 4000}]},
            17,
            "68017 characters in all are more than 65536",
        ),
        ({"http_path": ["a"] * 20, "http_url": ["b"]}, 4, "84 regular expressions in all are more than 64"),
    ],
)
def test_there_is_a_limit_of_all_together(each: dict[str, Any], count: int, wrong: str) -> None:
    given = FlowFilter.from_dict(each)
    with pytest.raises(ModelError, match=f"^deny: {wrong}$"):
        matcher((), [given] * count)
    matcher((), [given] * (count - 2))


def test_no_pattern_takes_its_time() -> None:
    long = evolve(FULL, destination_names=("a" * 250 + "!",))
    slow = matcher([FlowFilter(destination_fqdn=("*a" * 100 + "b",))])
    url = FlowFilter.from_dict({"http_url": ["(a+)+$", "(x|x)*y"]})
    http = HTTP(0, "GET", "http://x/" + "a" * 50_000 + "!")
    attacked = evolve(FULL, l7=Layer7(L7FlowType.REQUEST, 0, http))
    started = time.thread_time()
    assert not slow(long)
    assert not matcher([url])(attacked)
    assert time.thread_time() - started < 1
