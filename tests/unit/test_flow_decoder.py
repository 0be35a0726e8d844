"""When events were, by the clock on the wall."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from k8sdatapath.datapath import flow_decoder
from k8sdatapath.datapath.flow_decoder import Decoder
from k8sdatapath.datapath.flow_names import KnownNames

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
