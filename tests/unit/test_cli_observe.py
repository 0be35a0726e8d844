"""``k8sdatapath observe``: its flags are Hubble's, and so is what it prints."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from attrs import evolve
from google.protobuf import json_format
from typer.testing import CliRunner

from k8sdatapath.cli import observe
from k8sdatapath.cli.app import app
from k8sdatapath.flow_source import FlowRing
from k8sdatapath.hubble import AgentEvents, HubbleServer, ServerOptions
from k8sdatapath.model.agent_event import (
    AgentEvent,
    AgentEventType,
    EndpointUpdate,
    IpcacheUpdate,
    TimeNotification,
)
from k8sdatapath.model.flow import (
    DropReason,
    Endpoint,
    EventType,
    Flow,
    FlowEvent,
    FlowType,
    LostEvent,
    LostEventSource,
    MonitorEvent,
    PolicyMatch,
    TrafficDirection,
    Verdict,
)
from k8sdatapath.model.flow_words import summary
from tests.support.flows import FULL, RESOLVED, SECOND, START
from tests.support.hubble_client import message

DENIED = evolve(
    FULL,
    l7=None,
    type=FlowType.L3_L4,
    event_type=EventType(MonitorEvent.DROP, 133),
    is_reply=None,
    destination_service=evolve(FULL.destination_service, namespace="my-app"),
    summary=summary(FULL.l4),
    uuid="denied",
)
SEED = "observe --namespace my-app --pod frontend-v1-abcde --to-service backend-api --verdict DROPPED -o json"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    ring = FlowRing()
    ring.add(FULL, DENIED, RESOLVED, LostEvent(LostEventSource.PERF_EVENT_RING_BUFFER, 2, 1, START, START))
    with HubbleServer(ring, ServerOptions(listen=("127.0.0.1:0",))) as served:
        yield served.addresses[0]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "flows.json"
    lines = [FlowEvent.of(each).to_json() for each in (FULL, DENIED, RESOLVED)]
    path.write_text("\n".join([*lines, "", RESOLVED.to_json()]) + "\n")
    return str(path)


def run(command: str, *more: str) -> str:
    result = CliRunner().invoke(app, [*shlex.split(command), *more])
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(command: str, *more: str) -> str:
    result = CliRunner().invoke(app, [*shlex.split(command), *more])
    assert result.exit_code in (1, 2), result.output
    return result.output


def test_the_denied_flow_of_a_frontend_is_found_as_with_hubble(server: str) -> None:
    flows, lost = (json.loads(line) for line in run(SEED, "--server", server).splitlines())
    assert flows["flow"] == DENIED.to_dict()
    assert flows["node_name"] == "prod-eu/node-1"
    assert lost["lost_events"]["num_events_lost"] == "2"
    assert flows["flow"]["drop_reason_desc"] == "POLICY_DENIED"
    assert flows["flow"]["Summary"] == "TCP Flags: SYN, ACK"


def test_lines_are_answers_of_the_protocol(file: str) -> None:
    for line in run("observe -o jsonpb --input-file", file).splitlines():
        json_format.Parse(line, message("observer.GetFlowsResponse")())


#: Flags -> the filters they stand for, as JSON: allowed, denied.
FLAGS: dict[str, tuple[list[dict[str, object]], list[dict[str, object]]]] = {
    "": ([], []),
    "--ip-translation --use-default-field-masks=false --pod a --not --from-pod b": (
        [{"source_pod": ["a"]}, {"destination_pod": ["a"]}],
        [{"source_pod": ["b"]}],
    ),
    "--verdict DROPPED --verdict AUDIT": ([{"verdict": ["DROPPED", "AUDIT"]}], []),
    "--pod a/b": ([{"source_pod": ["a/b"]}, {"destination_pod": ["a/b"]}], []),
    "--from-pod a/b --to-port 80": ([{"source_pod": ["a/b"], "destination_port": ["80"]}], []),
    "-n shop": ([{"source_pod": ["shop/"]}, {"destination_pod": ["shop/"]}], []),
    "-n shop --pod web": ([{"source_pod": ["shop/web"]}, {"destination_pod": ["shop/web"]}], []),
    "-n shop --to-service web": ([{"destination_service": ["shop/web"]}], []),
    "-n shop --from-pod a --to-service b": (
        [{"source_pod": ["shop/a"], "destination_service": ["shop/b"]}],
        [],
    ),
    "--from-namespace a --to-namespace b": ([{"source_pod": ["a/"], "destination_pod": ["b/"]}], []),
    "--from-namespace a --to-pod c/x": ([{"source_pod": ["a/"], "destination_pod": ["c/x"]}], []),
    "-A": ([{"source_pod": ["/"]}, {"destination_pod": ["/"]}], []),
    "--ip 10.0.0.1 --verdict DROPPED": (
        [
            {"source_ip": ["10.0.0.1"], "verdict": ["DROPPED"]},
            {"destination_ip": ["10.0.0.1"], "verdict": ["DROPPED"]},
        ],
        [],
    ),
    "--not --verdict FORWARDED --protocol tcp": ([{"protocol": ["tcp"]}], [{"verdict": ["FORWARDED"]}]),
    "--not --to-port 53 --not --label a=b": (
        [],
        [
            {"destination_port": ["53"], "source_label": ["a=b"]},
            {"destination_port": ["53"], "destination_label": ["a=b"]},
        ],
    ),
    "-t drop -t trace:to-endpoint -t trace:from-network -t 129": (
        [
            {
                "event_type": [
                    {"type": 1},
                    {"type": 4, "match_sub_type": True},
                    {"type": 4, "match_sub_type": True, "sub_type": 10},
                    {"type": 129},
                ]
            }
        ],
        [],
    ),
    "--tcp-flags syn,ack --tcp-flags RST": (
        [{"tcp_flags": [{"SYN": True, "ACK": True}, {"RST": True}]}],
        [],
    ),
    "--identity world --to-workload Deployment/web": (
        [
            {"source_identity": [2], "destination_workload": [{"kind": "Deployment", "name": "web"}]},
            {"destination_identity": [2], "destination_workload": [{"kind": "Deployment", "name": "web"}]},
        ],
        [],
    ),
    "-6 --unencrypted --traffic-direction ingress --interface eth0": (
        [
            {
                "ip_version": ["IPv6"],
                "encrypted": [False],
                "traffic_direction": ["INGRESS"],
                "interface": [{"name": "eth0"}],
            }
        ],
        [],
    ),
    "--http-header X-Team:red --http-status 5+ --http-method GET --http-path ^/v1": (
        [
            {
                "http_header": [{"key": "X-Team", "value": "red"}],
                "http_status_code": ["5+"],
                "http_method": ["GET"],
                "http_path": ["^/v1"],
            }
        ],
        [],
    ),
    "--drop-reason-desc POLICY_DENIED --ip-trace-id 7 --trace-id a --uuid b": (
        [{"drop_reason_desc": ["POLICY_DENIED"], "ip_trace_id": ["7"], "trace_id": ["a"], "uuid": ["b"]}],
        [],
    ),
    """--allowlist '{"uuid":["a"]} {"uuid":["b"]}' --denylist '{"verdict":["AUDIT"]}'""": (
        [{"uuid": ["a"]}, {"uuid": ["b"]}],
        [{"verdict": ["AUDIT"]}],
    ),
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_stand_for_the_filters_that_hubble_makes_of_them(flags: str) -> None:
    told = yaml.safe_load(run(f"observe --print-raw-filters {flags}")) or {}
    lists = ([json.loads(each) for each in told.get(name, [])] for name in ("allowlist", "denylist"))
    assert tuple(lists) == FLAGS[flags]


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        ("--verdict LOST", "argument --verdict: it cannot be 'LOST'"),
        ("--type agent:7:8", "it cannot be 'agent:7:8'"),
        ("--first 3 --last 4", "--first and --last exclude each other"),
        ("--first 3 --follow", "--first and --follow exclude each other"),
        ("--field-mask time", "--field-mask goes with -o json"),
        ("-o table -f", "a table has an end"),
        ("--to-ip 10.0.0.0/99", "allow[0].destination_ip: '10.0.0.0/99' is neither"),
        ("-n a --pod b/c", "'b/c' is in another namespace than a"),
        ("--allowlist {", "argument --allowlist"),
        ("""--denylist '{"verdicts":[]}'""", "a filter has no field 'verdicts'"),
        ("--since yesterday", "'yesterday' is neither a duration"),
        (f"--since {'9' * 400}h", "is longer than there has been time"),
        ("--last -1", "expected one argument"),
        ("--last=-1", "'-1' is not a whole number, 0 or more"),
        ("--last 99999999999999999999", "that cannot be asked for: "),
        ("--identity 99999999999", "that cannot be asked for: "),
        ("--ip-translation=no", "'no' is neither true nor false"),
        ("--not --not --verdict DROPPED", "the next flag, which is another --not"),
        ("--pod a --from-pod b", "--pod is about either end, and does not go with --from-pod"),
        ("--to-namespace a -n b", "--namespace is about either end, and does not go with --to-namespace"),
        ("-A --from-namespace b", "-A is about either end, and does not go with --from-namespace"),
        ("--not --ip 1.1.1.1 --not --to-ip 1.1.1.1", "--ip is about either end, and does not go with"),
        ("--http-path (", "'(' is not a regular expression: 'missing ): ('"),
        ("--verdict DROPPED --not", "--not is about the next flag, and there is none"),
        ("--tls-client-cert-file /dev/null", "a client's certificate and its key go together"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--server 127.0.0.1:1", "127.0.0.1:1 does not tell flows: UNAVAILABLE"),
        ("--input-file /nowhere", "No such file"),
    ],
)
def test_what_makes_no_sense_is_said(flags: str, wrong: str, capfd: pytest.CaptureFixture[str]) -> None:
    output = fails(f"observe {flags}")
    assert wrong in " ".join((output + capfd.readouterr().err).replace("│", "").split())


def test_where_nobody_tells_flows_it_is_said_who_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "DEFAULT_SOCKET", "/nowhere")
    monkeypatch.setattr(observe, "DEFAULT_SERVER", "127.0.0.1:1")
    monkeypatch.delenv("HUBBLE_SERVER", raising=False)
    assert "(an agent tells flows with hubble.enabled; --server names another server)" in fails("observe")


def test_lines_are_short_and_say_it_all(server: str) -> None:
    lines = run("observe --server", server, "--all").splitlines()
    assert lines == [
        "Nov 14 22:13:20.123: shop/backend-0:8080 (ID:301) <- my-app/frontend-v1-abcde:40000 (ID:300) "
        "http-response DROPPED (IP Trace ID: 77; HTTP/1.1 503 12ms (GET http://backend/v1/items?x=1); SPIRE)",
        "Nov 14 22:13:20.123: my-app/frontend-v1-abcde:40000 (ID:300) <> shop/backend-0:8080 (ID:301) "
        "Policy denied DROPPED (IP Trace ID: 77; TCP Flags: SYN, ACK; SPIRE)",
        "Nov 14 22:13:21.000: fd00::1 (host) <> fd00::53 (world) dns-request FORWARDED "
        "(DNS Query db.shop.svc.cluster.local. AAAA)",
        "Nov 14 22:13:20.000: EVENTS LOST: PERF_EVENT_RING_BUFFER CPU(1) 2 "
        "(first: Nov 14 22:13:20.000, last: Nov 14 22:13:20.000)",
    ]
    assert run("observe --all --silent-errors --server", server).splitlines() == lines
    assert run("observe --last 1 --server", server).splitlines() == lines[2:3]


def test_a_verdict_of_policies_says_which_match_and_who(tmp_path: Path) -> None:
    flow = Flow(
        time=START,
        verdict=Verdict.DROPPED,
        drop_reason=DropReason.POLICY_DENIED,
        event_type=EventType(MonitorEvent.POLICY_VERDICT, 0),
        policy_match_type=PolicyMatch.L3_L4,
        traffic_direction=TrafficDirection.INGRESS,
        source=Endpoint(identity=2),
        ingress_denied_by=FULL.ingress_denied_by,
    )
    path = tmp_path / "one"
    path.write_text(flow.to_json())
    assert run("observe --print-policy-names --input-file", str(path)) == (
        "Nov 14 22:13:20.000:  (world) <>  (unknown) policy-verdict:L3-L4 INGRESS DENIED BY never ()\n"
    )


def test_a_terminal_is_not_written_to_by_whoever_sends_a_request(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text(evolve(RESOLVED, summary="a\x1b]0;owned\x07b\nc").to_json())
    assert run("observe --input-file", str(path)).endswith("(a\\x1b]0;owned\\x07b\\nc)\n")


@pytest.mark.parametrize(
    ("rest", "digits"),
    [
        (433_895_760, {"Milli": ".433", "Micro": ".433895", "Nano": ".43389576"}),
        (500_000_001, {"Milli": ".5", "Micro": ".5", "Nano": ".500000001"}),
        (1_000, {"Milli": "", "Micro": ".000001", "Nano": ".000001"}),
        (0, {"Milli": "", "Micro": "", "Nano": ""}),
    ],
)
def test_a_second_has_the_digits_that_hubble_shows(tmp_path: Path, rest: int, digits: dict[str, str]) -> None:
    path = tmp_path / "one"
    path.write_text(evolve(RESOLVED, time=START // SECOND * SECOND + rest).to_json())
    for name, fraction in digits.items():
        told = run(f"observe --time-format RFC3339{name} --input-file", str(path))
        assert told.startswith(f"2023-11-14T22:13:20{fraction}Z: ")


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        ("--numeric", "Nov 14 22:13:20.123: 10.244.1.5:40000 (ID:300) <> 10.244.2.7:8080 (ID:301)"),
        ("--time-format RFC3339Milli", "2023-11-14T22:13:20.123Z: my-app/"),
        ("--time-format RFC3339Nano", "2023-11-14T22:13:20.123Z: my-app/"),
        ("--time-format RFC1123Z", "Tue, 14 Nov 2023 22:13:20 +0000: my-app/"),
        ("--print-node-name", "Nov 14 22:13:20.123 [prod-eu/node-1]: my-app/"),
        (
            "--color always",
            "Nov 14 22:13:20.123: \x1b[36mmy-app/frontend-v1-abcde\x1b[0m:\x1b[33m40000\x1b[0m",
        ),
    ],
)
def test_people_choose_how_it_looks(file: str, flags: str, start: str) -> None:
    assert run(f"observe --uuid denied {flags} --input-file", file).startswith(start)


@pytest.mark.parametrize("flags", ["--last 0", "--first 0"])
def test_a_server_is_not_asked_for_no_flows(flags: str) -> None:
    assert run(f"observe {flags} --server", "unix:///nowhere") == ""


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        ("", 4),
        ("--last 2", 2),
        ("--first 1", 1),
        ("--first 0", 0),
        ("--last 0", 0),
        ("--verdict DROPPED", 2),
        ("--since 2023-11-14", 4),
        ("--since 2023-11-14T22:13:21Z", 2),
        ("--until 2023-11-14T22:13:20.5Z", 2),
        ("--since 1h", 0),
    ],
)
def test_a_file_is_read_with_the_same_flags(file: str, flags: str, count: int) -> None:
    assert len(run(f"observe {flags} --input-file", file).splitlines()) == count


def test_a_line_that_is_no_flow_is_named_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "flows"
    event = {"agent_event": {"type": "AGENT_STARTED"}, "node_name": "a", "time": "2023-11-14T22:13:20Z"}
    good = FlowEvent.of(FULL).to_json().encode()
    lines = [good, b'{"flow": 5}', b"\xff\xfe", json.dumps(event).encode(), good, good[:99]]
    path.write_bytes(b"\n".join(lines))
    result = CliRunner().invoke(app, ["observe", "-o", "json", "--input-file", str(path)])
    assert (result.stdout.encode().splitlines(), result.exit_code) == ([good, good], 0)
    told = result.stderr.splitlines()
    assert [line.split(" is passed over: ")[0] for line in told] == [f"{path}, line {n}" for n in (2, 3, 6)]
    silent = CliRunner().invoke(app, ["observe", "-s", "--input-file", "-"], input=path.read_bytes())
    assert (len(silent.stdout.splitlines()), silent.stderr, silent.exit_code) == (2, "", 0)


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "flows"
    path.write_text("kind: Pod\n" + '{"a":' * 5000)
    assert "flows, line 1: not JSON: " in fails("observe -s --input-file", str(path)).replace("\n", "")


def test_masks_leave_what_they_name(server: str) -> None:
    told = run("observe --uuid denied --field-mask verdict,source.pod_name -o json --server", server)
    assert json.loads(told.splitlines()[0])["flow"] == {
        "verdict": "DROPPED",
        "source": {"pod_name": "frontend-v1-abcde"},
    }


def test_the_status_of_a_server(server: str) -> None:
    told = json.loads(run("flows status -o json --server", server))
    assert (told["num_flows"], told["max_flows"]) == (4, 4095)
    assert "4/4095 (0.1%)" in run("flows status --server", server)


def test_the_nodes_and_namespaces_of_a_server(server: str) -> None:
    (node,) = json.loads(run("flows nodes -o json --server", server))
    assert (node["name"], node["state"], node["flows"]) == ("default/localhost", "connected", "4/4095")
    assert run("flows namespaces --server", server) == "none\n"  # these flows are of another year


def test_requests_are_flows_of_type_l7(server: str) -> None:
    told, lost = map(json.loads, run("l7 events -o jsonpb --server", server).splitlines())
    assert (told["flow"]["uuid"], "lost_events" in lost) == (FULL.uuid, True)
    assert "http-response" not in run("l7 events --http-method POST --verdict DROPPED --server", server)
    assert run("l7 events --help") == run("observe --help") == run("observe flows --help")


def test_what_agents_have_done() -> None:
    events = AgentEvents()
    events.add(AgentEvent(AgentEventType.AGENT_STARTED, TimeNotification(START)))
    pod = {"labels": ["k8s:app=web", "k8s:tier=\x1b"], "pod_name": "web-0"}
    events.add(AgentEvent(AgentEventType.ENDPOINT_CREATED, EndpointUpdate.from_dict(pod)))
    moved_to = IpcacheUpdate("10.1.1.3/32", 300, old_identity=0, pod_name="web-0")
    events.add(AgentEvent(AgentEventType.IPCACHE_UPSERTED, moved_to))
    options = ServerOptions(listen=("127.0.0.1:0",))
    with HubbleServer(FlowRing(), options, events=events) as served:
        address = served.addresses[0]
        created, moved = run("flows agent-events --last 2 --server", address).splitlines()
        assert created.endswith(
            "[default/localhost]: ENDPOINT_CREATED labels=k8s:app=web,k8s:tier=\\x1b pod_name=web-0"
        )
        assert moved.endswith("IPCACHE_UPSERTED cidr=10.1.1.3/32 identity=300 old_identity=0 pod_name=web-0")
        lines = run("flows agent-events -o json --server", address).splitlines()
        assert json.loads(lines[0])["agent_event"]["type"] == "AGENT_STARTED"
        assert len(lines) == 3
        assert run("flows agent-events --last 0 --server", address) == ""
        assert run("observe agent-events --last 2 --server", address).splitlines() == [created, moved]


@contextmanager
def following(*arguments: str) -> Iterator[Iterator[str]]:
    """What a process says until it ends by itself."""
    command = [sys.executable, "-m", "k8sdatapath.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
            assert process.wait(30) in (0, 1)  # the stream has ended, or the server is not there any more
        finally:
            process.kill()


def test_follows_until_the_server_ends() -> None:
    ring = FlowRing()
    ring.add(*(evolve(RESOLVED, time=START + each * SECOND) for each in range(5)))
    server = HubbleServer(ring, ServerOptions(listen=("127.0.0.1:0",)))
    with server, following("observe", "-f", "--last", "2", "--server", server.addresses[0]) as lines:
        told = [next(lines), next(lines)]
        server.close()
        told += lines
    assert len([line for line in told if "dns-request" in line]) == 2


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [
        ("--rows=-1", "'-1' is not a number of rows"),
        ("--rows=0", "'0' is not a number of rows"),
        ("--interval=-1", "'-1' is no number of seconds"),
        ("--interval=nan", "'nan' is no number of seconds"),
        ("--window=x", "'x' is no number of seconds"),
    ],
)
def test_numbers_of_top_that_cannot_be(flag: str, wrong: str, capfd: pytest.CaptureFixture[str]) -> None:
    output = fails("top --once", flag)
    assert wrong in output + capfd.readouterr().err


def test_top_shows_what_comes_until_the_server_ends() -> None:
    ring = FlowRing()
    server = HubbleServer(ring, ServerOptions(listen=("127.0.0.1:0",)))
    ring.add(*(evolve(DENIED, time=time.time_ns()) for _ in range(7)))
    arguments = ["top", "--interval", "0.1", "--server", server.addresses[0], "--verdict", "DROPPED"]
    with server, following(*arguments) as lines:
        assert next(line for line in lines if "7 flows" in line)
        server.close()
        assert [line for line in lines if "POLICY_DENIED" in line]
