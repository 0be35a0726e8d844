"""Pictures of flows: who is drawn, where, and that nothing in them runs or is fetched."""

from __future__ import annotations

import re
import subprocess
import time
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from attrs import evolve
from typer.testing import CliRunner

from k8sdatapath.cli.app import app
from k8sdatapath.model.flow import (
    HTTP,
    IP,
    TCP,
    DropReason,
    Endpoint,
    Flow,
    FlowEvent,
    L7FlowType,
    Layer7,
    LostEvent,
    LostEventSource,
    Verdict,
    WorkloadRef,
)
from k8sdatapath.pictures import ServiceMap, Tally, latencies, report, verdicts
from k8sdatapath.pictures.tally import Party
from tests.support.flows import SECOND, START

EVIL = "<script>alert(1)</script>\"'&"


def pod(workload: str, number: int = 0, namespace: str = "shop") -> Endpoint:
    return Endpoint(
        identity=300,
        namespace=namespace,
        pod_name=f"{workload}-{number}",
        workloads=(WorkloadRef(workload, "Deployment"),),
    )


def flow(source: Endpoint, destination: Endpoint, second: int = 0, *, dropped: bool = False) -> Flow:
    return Flow(
        time=START + second * SECOND,
        verdict=Verdict.DROPPED if dropped else Verdict.FORWARDED,
        drop_reason=DropReason.POLICY_DENIED if dropped else 0,
        l4=TCP(40000, 8080),
        source=source,
        destination=destination,
        is_reply=None if dropped else False,
    )


def cluster() -> list[Flow]:
    """300 pods of 60 workloads in 6 namespaces, who talk to some of the next."""
    found = []
    for tier in range(6):
        for index in range(10):
            for number in range(5):
                one = pod(f"app-{tier}-{index}", number, f"ns{tier}")
                for step in (1, 3):
                    other = pod(f"app-{tier + 1}-{(index * step + step) % 10}", number, f"ns{tier + 1}")
                    if tier < 5:
                        found.append(flow(one, other, index, dropped=(index, step) == (3, 3)))
    return found


def test_pods_are_drawn_by_what_they_belong_to() -> None:
    drawn = ServiceMap([flow(pod("web", number), pod("api", number)) for number in range(9)])
    assert {str(box.party) for box in drawn.boxes} == {"shop/web", "shop/api"}
    web, api = (next(box for box in drawn.boxes if box.party.name == name) for name in ("web", "api"))
    assert web.x < api.x
    assert drawn.links[web.party, api.party].flows == 9


def test_an_answer_is_of_who_was_asked() -> None:
    asked = flow(pod("web"), pod("api"))
    answer = evolve(flow(pod("api"), pod("web")), is_reply=True)
    assert list(Tally([asked, answer]).links) == [(Party("shop", "web"), Party("shop", "api"))]


def test_hundreds_of_pods_are_readable_and_always_drawn_the_same() -> None:
    flows = cluster()
    started = time.thread_time()
    drawn = ServiceMap(flows)
    svg = drawn.to_svg()
    assert time.thread_time() - started < 5
    assert len(drawn.boxes) == 60
    for one, other in combinations(drawn.boxes, 2):
        assert abs(one.x - other.x) >= 190 or abs(one.y - other.y) >= 46, (one, other)
    texts = [each.text for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {f"app-{tier}-{index}" for tier in range(6) for index in range(10)} <= set(texts)
    assert 'class="d"' in svg
    assert ServiceMap(reversed(flows)).to_svg() == svg
    assert drawn._repr_svg_() == svg


def test_where_everybody_asks_everybody_it_is_no_line() -> None:
    flows = [flow(pod(f"app-{one}"), pod(f"app-{other}")) for one in range(48) for other in range(48)]
    width, height = ServiceMap(flows).size
    assert width < 2500
    assert height > 200


def test_of_too_many_the_least_busy_are_one() -> None:
    busy = [flow(pod("web"), pod("api"))] * 10
    rest = [flow(pod(f"job-{number}", 0, "batch"), pod("api")) for number in range(500)]
    drawn = ServiceMap([*busy, *rest], most=20)
    assert len(drawn.boxes) == 21
    assert any(box.party.name == "482 others" for box in drawn.boxes)
    assert sum(link.flows for link in drawn.links.values()) == 510


def test_circles_and_oneself_are_drawn_too() -> None:
    ring = [flow(pod(one), pod(other)) for one, other in ("ab", "bc", "ca", "aa")]
    drawn = ServiceMap(ring)
    assert len({(box.x, box.y) for box in drawn.boxes}) == 3
    ET.fromstring(drawn.to_svg())
    ET.fromstring(ServiceMap([]).to_svg())


def test_verdicts_are_bars_over_time() -> None:
    svg = verdicts([flow(pod("a"), pod("b"), second, dropped=second > 50) for second in range(60)]).svg
    ET.fromstring(svg)
    assert "FORWARDED" in svg
    assert "DROPPED" in svg
    ET.fromstring(verdicts([]).svg)


def test_latencies_have_their_quantiles() -> None:
    flows = [
        evolve(flow(pod("a"), pod("b")), l7=Layer7(L7FlowType.RESPONSE, number * 10**6, HTTP(200)))
        for number in range(1, 101)
    ]
    svg = latencies(flows)._repr_svg_()
    assert "p50 51 ms, p95 96 ms, p99 100 ms" in svg
    ET.fromstring(svg)
    ET.fromstring(latencies([]).svg)


def hostile() -> list[Flow | LostEvent]:
    evil = Endpoint(namespace=EVIL, pod_name=EVIL)
    named = evolve(flow(evil, evil), source_names=(EVIL,), ip=IP(EVIL, EVIL))
    outside = evolve(flow(Endpoint(), Endpoint(), dropped=True), destination_names=(EVIL,))
    return [named, outside, LostEvent(LostEventSource.HUBBLE_RING_BUFFER, 7)]


def test_a_report_is_one_page_in_which_nothing_runs_and_nothing_is_fetched() -> None:
    page = report([*cluster(), *hostile()], title=EVIL)
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import""", page)
    assert set(re.findall(r"https?://[^\"]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    assert "<b>7</b>events lost" in page
    assert "POLICY_DENIED" in page
    ET.fromstring(re.sub(r"<meta[^>]*>", "", page.removeprefix("<!DOCTYPE html>")))


@pytest.mark.parametrize("when", [-(10**20), 0, 253_402_300_800 * SECOND], ids=["before", "none", "10000"])
def test_what_flows_say_cannot_break_a_page(when: int) -> None:
    strange = evolve(flow(pod("\0\x1b[31m"), pod("\ud800")), time=when)
    page = report([strange])
    ET.fromstring(re.sub(r"<meta[^>]*>", "", page.removeprefix("<!DOCTYPE html>")))
    assert "\ufffd[31m" in page
    page.encode()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "flows.json"
    path.write_text("\n".join(FlowEvent.of(each).to_json() for each in cluster()))
    return str(path)


def test_the_command_writes_the_page(file: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["flows", "report", "--input-file", file, "-o", str(page), "-n", "ns1", "--title", "One"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "<title>One</title>" in page.read_text()
    assert "app-2-" in page.read_text()
    assert "app-4-" not in page.read_text()


def test_top_tells_who_is_busiest_and_why_flows_are_dropped(file: str) -> None:
    result = CliRunner().invoke(app, ["top", "--once", "--input-file", file, "--rows", "5"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "500 flows, 55.6/s, 25 dropped"
    assert lines[2].split() == ["WHO", "FLOWS/S", "DROPPED", "MEDIAN", "PORTS"]
    assert len(lines) == 2 + 6 + 1 + 6
    assert "8080/TCP" in lines[3]
    assert lines[-1].split()[0] == "POLICY_DENIED"


def test_a_browser_shows_the_page_and_has_nothing_to_complain_of(tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(report([*cluster(), *hostile()], title=EVIL))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-breakpad", "--hide-scrollbars"]
    options += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--window-size=1300,1800",
    ]
    for what in (f"--screenshot={picture}", "--dump-dom"):
        ran = subprocess.run(
            ["chromium", *options, what, page.as_uri()],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert "CONSOLE" not in ran.stderr
    assert ran.stdout.count('<rect class="b"') == 63
    assert "&lt;script&gt;" in ran.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000, "an empty page is smaller"
