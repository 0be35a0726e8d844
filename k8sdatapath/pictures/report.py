"""Flows as one page: nothing in it has to be fetched, and nothing runs."""

from __future__ import annotations

from collections.abc import Iterable

from k8sdatapath.markup import escaped, table
from k8sdatapath.model.flow import Flow, LostEvent
from k8sdatapath.pictures.charts import latencies, moment, verdicts
from k8sdatapath.pictures.service_map import ServiceMap
from k8sdatapath.pictures.tally import Link, Tally

__all__ = ["report"]

_ALLOWED = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;color:#1b1e23;margin:2rem auto;max-width:1200px;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
.numbers{display:flex;gap:2rem;flex-wrap:wrap}.numbers b{display:block;font-size:1.6rem}
.map{overflow:auto;border:1px solid #c4cad3;max-height:80vh}
table{border-collapse:collapse;margin:1rem 0}caption{text-align:left;font-weight:600}
th,td{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #e4e7ec}
"""


def report(items: Iterable[Flow | LostEvent], *, title: str = "Flows") -> str:
    """The page: what was seen, who talks to whom, what was dropped and why."""
    items = list(items)
    tally = Tally(items)
    span = ""
    if tally.flows:
        span = " to ".join(moment(each, "%Y-%m-%d %H:%M:%S UTC") for each in (tally.first, tally.last))
    numbers = {
        "flows": tally.flows,
        "dropped": tally.drops.total(),
        "parties": len({party for pair in tally.links for party in pair}),
        "events lost": tally.lost,
    }
    shown = "".join(f"<div><b>{value:,}</b>{name}</div>" for name, value in numbers.items())
    denied = [[str(one), str(other), reason, f"{count:,}"] for one, other, reason, count in tally.denied()]
    busiest = [[str(party), *_told(link)] for party, link in tally.busiest()]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_ALLOWED}">'
        f"<title>{escaped(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{escaped(title)}</h1><p>{span}</p><div class="numbers">{shown}</div>'
        f'<h2>Who talks to whom</h2><div class="map">{ServiceMap(tally).to_svg()}</div>'
        f"<h2>What became of it</h2>{verdicts(items).svg}"
        f"{table('Dropped', ('from', 'to', 'reason', 'flows'), denied)}"
        f"<h2>How long it took</h2>{latencies(items).svg}"
        f"{table('Busiest', ('who', 'flows', 'dropped', 'median', 'ports'), busiest)}"
        "</body></html>\n"
    )


def _told(link: Link) -> list[str]:
    values = sorted(link.latencies)
    median = f"{values[len(values) // 2] / 10**6:.3g} ms" if values else ""
    ports = ", ".join(port for port, _ in link.ports.most_common(3))
    return [f"{link.flows:,}", f"{link.dropped.total():,}", median, ports]
