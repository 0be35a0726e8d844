"""Who talks to whom, as a picture: parties from left to right, from those who ask to those who are asked."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from attrs import frozen

from k8sdatapath.markup import escaped
from k8sdatapath.model.flow import Flow, LostEvent
from k8sdatapath.pictures.tally import Link, Party, Tally

__all__ = ["Box", "ServiceMap"]

_WIDTH, _HEIGHT = 190, 46
_GAP_X, _GAP_Y = 110, 16
_MARGIN = 24
_TALLEST = 16
"""Boxes above each other; a longer column goes on beside itself."""
_RANKS = 8
"""Columns before that: where everybody asks everybody, there would be one for each."""
_LETTERS = 25
_SWEEPS = 6
_COLOURS = ("#4269d0", "#efb118", "#3ca951", "#a463f2", "#ff725c", "#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1b1e23}.s{font-size:10px;fill:#5b6470}"
    ".b{fill:#fff;stroke:#c4cad3}.e{fill:none;stroke:#8a94a3;opacity:.75}"
    ".d{fill:none;stroke:#d1242f;stroke-dasharray:5 3;opacity:.85}"
)


@frozen
class Box:
    """Where a party is drawn: its upper left corner."""

    party: Party
    x: float
    y: float


class ServiceMap:
    """A picture of flows: in a notebook it shows itself.

    :param flows: what is to be seen, or what was added up of it.
    :param most: so many parties; in each namespace the least busy are drawn as one beyond that.
    """

    def __init__(self, flows: Iterable[Flow | LostEvent] | Tally, *, most: int = 80) -> None:
        tally = flows if isinstance(flows, Tally) else Tally(flows)
        self.links = _merged(tally.links, most)
        self.boxes = tuple(_placed(self.links))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture."""
        right = max((box.x for box in self.boxes), default=0.0) + _WIDTH + _MARGIN
        bottom = max((box.y for box in self.boxes), default=0.0) + _HEIGHT + _MARGIN
        return right, bottom

    def to_svg(self) -> str:
        """The picture, with nothing that has to be fetched."""
        width, height = self.size
        places = {box.party: box for box in self.boxes}
        names = sorted({box.party.namespace for box in self.boxes})
        colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(filter(None, names))}
        edges = (_edge(places[one], places[other], link) for (one, other), link in self.links.items())
        asked: Counter[Party] = Counter()
        for (_, other), link in self.links.items():
            asked[other] += link.flows + link.dropped.total()
        boxes = (
            _box(box, colours.get(box.party.namespace, "#8a94a3"), asked[box.party]) for box in self.boxes
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-label="service map"><style>{_STYLE}</style>'
            f'<rect width="100%" height="100%" fill="#f7f8fa"/>{"".join(edges)}{"".join(boxes)}</svg>'
        )

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def __repr__(self) -> str:
        return f"<ServiceMap of {len(self.boxes)} parties, {len(self.links)} links>"


def _merged(links: Mapping[tuple[Party, Party], Link], most: int) -> dict[tuple[Party, Party], Link]:
    """The links of the busiest parties, with the others of each namespace as one."""
    weight: Counter[Party] = Counter()
    for pair, link in links.items():
        for party in pair:
            weight[party] += link.flows + link.dropped.total()
    kept = {party for party, _ in sorted(weight.items(), key=lambda each: (-each[1], each[0]))[:most]}
    rest = Counter(party.namespace for party in weight if party not in kept)

    def drawn(party: Party) -> Party:
        return party if party in kept else Party(party.namespace, f"{rest[party.namespace]} others")

    found: dict[tuple[Party, Party], Link] = {}
    for (one, other), link in sorted(links.items(), key=lambda each: each[0]):
        total = found.setdefault((drawn(one), drawn(other)), Link())
        total.flows += link.flows
        total.dropped += link.dropped
        total.ports += link.ports
    return found


def _placed(links: Mapping[tuple[Party, Party], Link]) -> Iterable[Box]:
    """Each party in the column after those who ask it, in the order that crosses least."""
    columns = _columns(links)
    beside: dict[Party, list[Party]] = defaultdict(list)
    for one, other in links:
        if one != other:
            beside[one].append(other)
            beside[other].append(one)
    for sweep in range(_SWEEPS):
        place = {party: row for column in columns for row, party in enumerate(column)}
        for column in columns if sweep % 2 == 0 else reversed(columns):
            mean = {
                party: sum(place[each] for each in beside[party]) / len(beside[party])
                if beside[party]
                else 0.0
                for party in column
            }
            column.sort(key=lambda party: (mean[party], party))
            place.update({party: row for row, party in enumerate(column)})
    split = [column[at : at + _TALLEST] for column in columns for at in range(0, len(column), _TALLEST)]
    tallest = max(map(len, split), default=0)
    for index, column in enumerate(split):
        top = _MARGIN + (tallest - len(column)) * (_HEIGHT + _GAP_Y) / 2
        for row, party in enumerate(column):
            yield Box(party, _MARGIN + index * (_WIDTH + _GAP_X), top + row * (_HEIGHT + _GAP_Y))


def _columns(links: Mapping[tuple[Party, Party], Link]) -> list[list[Party]]:
    """Parties by the longest way from somebody whom nobody asks; ways round in circles count once."""
    after: dict[Party, list[Party]] = defaultdict(list)
    parties = sorted({party for pair in links for party in pair})
    asked = Counter(other for one, other in links if one != other)
    for one, other in sorted(links):
        if one != other:
            after[one].append(other)
    forward: dict[Party, list[Party]] = {party: [] for party in parties}
    finished: list[Party] = []
    state: dict[Party, int] = {}
    for start in sorted(parties, key=lambda party: (asked[party], party)):
        stack = [(start, iter(after[start]))] if start not in state else []
        state.setdefault(start, 1)
        while stack:
            party, others = stack[-1]
            for other in others:
                if state.get(other) != 1:  # not back to one whose links are being followed
                    forward[party].append(other)
                    if other not in state:
                        state[other] = 1
                        stack.append((other, iter(after[other])))
                        break
            else:
                state[party] = 2
                finished.append(party)
                stack.pop()
    rank = dict.fromkeys(parties, 0)
    for party in reversed(finished):
        for other in forward[party]:
            rank[other] = max(rank[other], rank[party] + 1)
    ranks = max(rank.values(), default=-1) + 1
    columns: list[list[Party]] = [[] for _ in range(min(ranks, _RANKS))]
    for party in parties:
        columns[rank[party] * len(columns) // ranks].append(party)
    return columns


def _box(box: Box, colour: str, asked: int) -> str:
    name, namespace = _short(box.party.name), _short(box.party.namespace)
    x, y = box.x, box.y
    below = f'<text class="s" x="{x + 14:g}" y="{y + 36:g}">{escaped(namespace)}</text>'
    count = f'<text class="s" x="{x + _WIDTH - 8:g}" y="{y + 36:g}" text-anchor="end">{asked:,}</text>'
    return (
        f'<g><title>{escaped(str(box.party))}</title><rect class="b" x="{x:g}" y="{y:g}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="6"/><rect x="{x:g}" y="{y:g}" width="5" height="{_HEIGHT}" rx="2" '
        f'fill="{colour}"/><text x="{x + 14:g}" y="{y + 19:g}">{escaped(name)}</text>{below}{count}</g>'
    )


def _edge(one: Box, other: Box, link: Link) -> str:
    """A curve for what went through, and one for what did not."""
    found = []
    for kind, count, shift in (("e", link.flows, -3.0), ("d", link.dropped.total(), 3.0)):
        if not count:
            continue
        told = ", ".join(f"{name} {times:,}" for name, times in (link.dropped if kind == "d" else {}).items())
        ports = ", ".join(port for port, _ in link.ports.most_common(5))
        title = f"{one.party} -> {other.party}: {count:,} {told or 'flows'} ({ports})"
        wide = min(1 + math.log10(count), 6)
        found.append(
            f'<path class="{kind}" d="{_curve(one, other, shift)}" stroke-width="{wide:.1f}">'
            f"<title>{escaped(title)}</title></path>"
        )
    return "".join(found)


def _curve(one: Box, other: Box, shift: float) -> str:
    x1, y1 = one.x + _WIDTH, one.y + _HEIGHT / 2 + shift
    x2, y2 = other.x, other.y + _HEIGHT / 2 + shift
    if one is other:
        reach = x1 + _MARGIN + 4  # of which a curve goes three quarters: it stays within the picture
        return f"M{x1:g} {y1 - 8:g}C{reach:g} {y1 - 20:g} {reach:g} {y1 + 20:g} {x1:g} {y1 + 8:g}"
    bend = max(abs(x2 - x1) / 2, 50) if x2 > x1 else 80
    return f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 9]}…{text[-8:]}"
