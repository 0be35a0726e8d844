"""Talks of datagrams, of which nothing tells beginnings from answers, while policies change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8sdatapath.model.policy import ALL_PORTS, Action, Operator, Policy, Requirement, Rule, Selector, Toward
from k8sdatapath.net.packet import udp
from tests.packets.checkpoint import Checkpoint, checkpoint
from tests.packets.shop import API, FAMILIES, WEB, at

pytestmark = pytest.mark.packets


@pytest.fixture
def node() -> Iterator[Checkpoint]:
    with checkpoint(WEB, API) as made:
        yield made


def may(node: Checkpoint, *, web: bool, api: bool) -> None:
    """Whether each may begin with the other."""
    both = [Selector([Requirement("k8s:app", Operator.IN, [each])]) for each in ("web", "api")]
    for subject, peer, allowed in ((*both, web), (*reversed(both), api)):
        action = Action.ALLOW if allowed else Action.DENY
        rule = Rule("r", Toward.EGRESS, [peer], [ALL_PORTS], action)
        node.policy.upsert(Policy(str(subject), subject, [rule], {Toward.EGRESS}))


def asks(node: Checkpoint, family: int) -> bool:
    client, server = at(WEB, family), at(API, family)
    return node.passes(udp(client, server, 40000, 5353, b"?"), client, server)


def answers(node: Checkpoint, family: int) -> bool:
    client, server = at(WEB, family), at(API, family)
    return node.passes(udp(server, client, 5353, 40000, b"!"), server, client)


@FAMILIES
def test_who_may_begin_no_more_is_cut_though_the_other_may(node: Checkpoint, family: int) -> None:
    may(node, web=True, api=True)
    assert asks(node, family)
    assert answers(node, family)
    may(node, web=False, api=True)
    assert not asks(node, family)
    assert answers(node, family)  # with which it begins
    assert asks(node, family)  # an answer, now


@FAMILIES
def test_what_nobody_has_asked_for_is_no_answer(node: Checkpoint, family: int) -> None:
    may(node, web=False, api=True)
    assert answers(node, family)
    may(node, web=True, api=False)
    assert not answers(node, family)
    assert asks(node, family)
    assert answers(node, family)


@FAMILIES
def test_over_a_talk_of_the_other_end_one_answers(node: Checkpoint, family: int) -> None:
    """So when that may begin no more, what it sends is lost until one has sent again."""
    may(node, web=True, api=True)
    assert answers(node, family)  # with which it begins
    assert asks(node, family)
    may(node, web=True, api=False)
    assert not answers(node, family)
    assert asks(node, family)
    assert answers(node, family)
    may(node, web=False, api=False)
    assert not asks(node, family)
    assert not answers(node, family)
