"""Flows in files: which of their fields, and none of their secrets."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from k8sdatapath.datapath.flow_export import FlowExporter, redacted
from k8sdatapath.errors import ModelError
from k8sdatapath.flow_source import FlowRing
from k8sdatapath.model.flow import HTTP, TCP, Endpoint, Flow, FlowEvent, Header, L7FlowType, Layer7
from k8sdatapath.model.flow_words import summary


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("http://me:secret@web/a?token=secret", "http://web/a?HUBBLE_REDACTED"),
        ("http://web/a//b?token=secret//c?d", "http://web/a//b?HUBBLE_REDACTED"),
        ("http://me:secret@[fd00::1]:80?token=secret", "http://[fd00::1]:80?HUBBLE_REDACTED"),
        ("/a?to=http://secret", "/a?HUBBLE_REDACTED"),
        ("http://web/a@b", "http://web/a@b"),
    ],
)
def test_secrets_of_requests_are_not_written(url: str, written: str) -> None:
    headers = (Header("Cookie", "secret"), Header("Accept", "*/*"))
    for kind in (L7FlowType.REQUEST, L7FlowType.RESPONSE):
        l7 = Layer7(kind, 7, HTTP(200, "GET", url, "HTTP/1.1", headers))
        said = redacted(FlowEvent.of(Flow(l7=l7, summary=summary(None, l7))).to_dict())
        assert said["flow"]["l7"]["http"]["url"] == written
        assert [each["value"] for each in said["flow"]["l7"]["http"]["headers"]] == ["HUBBLE_REDACTED", "*/*"]
        assert written in said["flow"]["Summary"]
        assert "secret" not in json.dumps(said)
    assert redacted({"flow": {}}) == {"flow": {}}


@pytest.mark.parametrize(
    "wrong", ["sorce", "source.pod", "time.seconds", "source.workloads.name", "l7.http."]
)
def test_a_field_that_there_is_not_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{re.escape(wrong)}' leads nowhere in a flow"):
        FlowExporter(FlowRing(), tmp_path / "flows.json", fields=["time", wrong])
    assert not (tmp_path / "flows.json").exists()


def test_where_files_cannot_be_written_any_more_it_says_so_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "flows"
    directory.mkdir()
    ring = FlowRing()
    with FlowExporter(ring, directory / "flows.json", max_bytes=1) as exporter:
        shutil.rmtree(directory)
        ring.add(Flow(time=1))
        deadline = time.monotonic() + 10
        while exporter.error is None and time.monotonic() < deadline:
            time.sleep(0.01)
        ring.add(Flow(time=2))
    assert isinstance(exporter.error, FileNotFoundError)
    assert f"flows are not written to {directory / 'flows.json'} any more" in caplog.text


def test_a_disk_that_is_full_is_said(caplog: pytest.LogCaptureFixture) -> None:
    ring = FlowRing()
    with FlowExporter(ring, "/dev/full") as exporter:
        ring.add(Flow(time=1))
        deadline = time.monotonic() + 10
        while exporter.error is None and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "No space left on device" in caplog.text


def test_a_field_that_is_whole_has_all_its_parts(tmp_path: Path) -> None:
    fields = ["source.pod_name", "source", "l4", "l4.TCP.flags.SYN", "is_reply", "drop_reason"]
    ring = FlowRing()
    end = Endpoint(identity=7, pod_name="web")
    flow = Flow(time=1, source=end, l4=TCP(1, 2, 18), is_reply=False, drop_reason=133)
    with FlowExporter(ring, tmp_path / "flows.json", fields=fields):
        ring.add(flow)
    said = json.loads((tmp_path / "flows.json").read_text())["flow"]
    whole = flow.to_dict()
    assert said == {name: whole[name] for name in ("source", "l4", "is_reply", "drop_reason")}
