"""When events were, by the clock on the wall."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from k8sdatapath.datapath import flow_decoder
from k8sdatapath.datapath.flow_decoder import Decoder, lost_record
from k8sdatapath.datapath.flow_names import KnownNames
from k8sdatapath.flow_source import Seen
from k8sdatapath.model.flow import Flow

BEHIND = 1_700_000_000 * 10**9


@pytest.mark.parametrize("at", range(3))
def test_the_time_is_right_though_others_run_between_two_looks_at_clocks(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    pauses = [100] * at + [50_000_000]
    now = 0

    def look() -> int:
        nonlocal now
        now += pauses.pop(0) if pauses else 100
        return now

    clocks = SimpleNamespace(monotonic_ns=look, time_ns=lambda: look() + BEHIND)
    monkeypatch.setattr(flow_decoder, "time", clocks)
    decoder = Decoder(KnownNames(), {}, "default/node-1", "1")
    assert abs(decoder.clock - BEHIND) < 1000


def test_a_clock_that_is_set_moves_all_flows_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are made into flows when they come, packets when they are read."""
    behind = BEHIND
    clocks = SimpleNamespace(monotonic_ns=lambda: 0, time_ns=lambda: behind)
    monkeypatch.setattr(flow_decoder, "time", clocks)
    decoder = Decoder(KnownNames(), {}, "default/node-1", "1")
    records = decoder.keep(Flow(time=decoder.clock + 5), 5) + lost_record(0, 1, 4, 6)
    assert [_time(each) - behind for each in decoder.decode(records, 0)] == [5, 6]
    behind += 3600 * 10**9
    assert [_time(each) - behind for each in decoder.decode(records, 0)] == [5, 6]


def _time(seen: Seen) -> int:
    return seen.time if isinstance(seen, Flow) else seen.last
