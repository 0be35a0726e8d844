"""What became of flows over time, and how long answers took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from attrs import frozen

from k8sdatapath.markup import escaped
from k8sdatapath.model.flow import Flow, LostEvent, Verdict

__all__ = ["Chart", "latencies", "moment", "verdicts"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 200, 56, 24
_COLOURS = {
    "FORWARDED": "#3ca951",
    "DROPPED": "#d1242f",
    "ERROR": "#8c1c24",
    "AUDIT": "#efb118",
    "REDIRECTED": "#4269d0",
    "TRACED": "#97bbf5",
    "TRANSLATED": "#6cc5b0",
}
_SECOND = 10**9
_STEPS = [10**3 * 2**step for step in range(24)]
"""Ends of the bars of latencies, in nanoseconds: from a microsecond to 8 seconds."""


@frozen
class Chart:
    """A picture that shows itself in a notebook."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg


def moment(nanoseconds: int, form: str = "%H:%M:%S") -> str:
    """A point in time, or that no calendar has it."""
    try:
        return f"{datetime.fromtimestamp(nanoseconds / _SECOND, UTC):{form}}"
    except (OverflowError, ValueError, OSError):
        return "N/A"


def verdicts(items: Iterable[Flow | LostEvent], *, bars: int = 60) -> Chart:
    """How many flows had which verdict, over time."""
    flows = [each for each in items if isinstance(each, Flow)]
    first = min((each.time for each in flows), default=0)
    span = max((each.time for each in flows), default=0) - first + 1
    counts: list[Counter[str]] = [Counter() for _ in range(bars)]
    for each in flows:
        known = each.verdict in Verdict.__members__.values()
        counts[(each.time - first) * bars // span][Verdict(each.verdict).name if known else "?"] += 1

    def when(bar: int) -> str:
        return moment(first + span * bar // bars)

    return Chart(_bars("flows by verdict", counts, [when(0), when(bars // 2), when(bars)]))


def latencies(items: Iterable[Flow | LostEvent]) -> Chart:
    """How long answers took, with the median and what one in twenty and in a hundred exceeded."""
    found = sorted(
        each.l7.latency_ns for each in items if isinstance(each, Flow) and each.l7 and each.l7.latency_ns
    )
    counts: list[Counter[str]] = [Counter() for _ in _STEPS]
    for value in found:
        bar = next((index for index, end in enumerate(_STEPS) if value <= end), len(_STEPS) - 1)
        counts[bar]["REDIRECTED"] += 1
    quantiles = [(name, found[int(len(found) * at)]) for name, at in _QUANTILES] if found else []
    told = ", ".join(f"{name} {_duration(value)}" for name, value in quantiles) or "none"
    middle = _duration(_STEPS[len(_STEPS) // 2])
    return Chart(_bars(f"latency of answers: {told}", counts, ["1 µs", middle, "8 s"], legend=False))


_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def _duration(nanoseconds: float) -> str:
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:g} ns"


def _bars(title: str, counts: Sequence[Counter[str]], under: Sequence[str], *, legend: bool = True) -> str:
    """Bars on top of each other, with their greatest number at the left."""
    greatest = max((each.total() for each in counts), default=0) or 1
    wide, high = (_WIDTH - _LEFT) / len(counts), _HEIGHT - _BOTTOM - 30
    parts = []
    for index, each in enumerate(counts):
        y = float(_HEIGHT - _BOTTOM)
        for name in [*_COLOURS, "?"]:
            if count := each[name]:
                tall = count * high / greatest
                y -= tall
                parts.append(
                    f'<rect x="{_LEFT + index * wide:.1f}" y="{y:.1f}" width="{max(wide - 1, 0.5):.1f}" '
                    f'height="{tall:.1f}" fill="{_COLOURS.get(name, "#8a94a3")}">'
                    f"<title>{count:,}{f' {name}' if legend else ''}</title></rect>"
                )
    names = [name for name in _COLOURS if any(each[name] for each in counts)] if legend else []
    for index, name in enumerate(names):
        left = _WIDTH - 100 * (len(names) - index)
        parts.append(f'<rect x="{left}" y="6" width="10" height="10" fill="{_COLOURS[name]}"/>')
        parts.append(_text(left + 14, 15, name))
    for x, side, text in zip((_LEFT, (_LEFT + _WIDTH) / 2, _WIDTH), _SIDES, under, strict=True):
        parts.append(_text(x, _HEIGHT - 8, text, side))
    floor = _HEIGHT - _BOTTOM
    parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{floor}" y2="{floor}" stroke="#c4cad3"/>')
    parts.append(_text(8, 15, title) + _text(_LEFT - 6, 38, f"{greatest:,}", "end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" aria-label="{escaped(title)}">'
        "<style>text{font:11px system-ui,sans-serif;fill:#1b1e23}</style>"
        f'<rect width="100%" height="100%" fill="#f7f8fa"/>{"".join(parts)}</svg>'
    )


_SIDES = ("start", "middle", "end")


def _text(x: float, y: float, text: str, side: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{side}">{escaped(text)}</text>'
