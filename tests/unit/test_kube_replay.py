"""What is recorded is what is played back, also after a crash."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from math import inf
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import ClosedError, ManifestError, SourceError
from k8sdatapath.kube import Recorder, Replay
from k8sdatapath.kube.events import Batch, ObjectEvent
from k8sdatapath.kube.objects import (
    Endpoint,
    EndpointSlice,
    HostPort,
    KubeNode,
    KubeObject,
    KubePod,
    KubeRaw,
    KubeService,
    Port,
)
from k8sdatapath.model import Protocol, Selection
from tests.support.api_double import ApiDouble
from tests.support.watching import Listener, Watch, ports_of, service

names = st.sampled_from(["a", "b", "web-1"])
addresses = st.builds(IPv4Address, st.integers(1, 2**32 - 1)) | st.builds(
    IPv6Address, st.integers(1 << 100, 2**128 - 1)
)
networks = st.sampled_from(["10.0.0.0/8", "fd00::/8", "0.0.0.0/0"]).map(ip_network)
numbers, flags = st.integers(1, 65535), st.booleans()
protocols, sets = st.sampled_from(Protocol), st.frozensets(names)
ports = st.builds(Port, names, numbers, protocols, numbers)


def some(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=3).map(tuple)


endpoints = st.builds(Endpoint, addresses, flags, flags, flags, names, sets, sets)
host_ports = st.builds(HostPort, numbers, protocols, numbers, st.none() | addresses)
objects: st.SearchStrategy[KubeObject] = st.one_of(
    st.builds(EndpointSlice, names, names, names, st.sampled_from([4, 6]), some(ports), some(endpoints)),
    st.builds(KubeNode, names, names, some(addresses), some(networks)),
    st.builds(KubePod, names, names, names, some(addresses), some(host_ports), st.tuples(names, names)),
    st.builds(KubeRaw, names, names, names, st.dictionaries(names, st.lists(numbers))),
    st.builds(
        KubeService,
        names,
        names,
        some(addresses),
        some(ports),
        st.sampled_from(Selection),
        names,
        some(addresses),
        some(addresses),
        flags,
        flags,
        numbers,
        some(networks),
        numbers,
    ),
)
errors = st.builds(ManifestError, names, names, names)
events = st.builds(ObjectEvent, names, names, names, objects, st.just(0.0)) | st.builds(
    ObjectEvent, names, names, names, st.none(), st.just(0.0), st.none() | errors
)
batches = st.builds(Batch, some(events), flags)


class Given:
    """A source of given batches, which then ends."""

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches
        self.closed = False

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        yield from self._batches

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Given:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def record(path: Path, *batches: Batch) -> None:
    source = Given(*batches)
    with Recorder(source, path) as recorder:
        assert tuple(recorder.batches()) == batches
    assert source.closed


def replayed(path: Path) -> list[Batch]:
    return list(Replay(path, speed=inf, ends=True).batches())


def comparable(batches: list[Batch]) -> object:
    """Without the times; errors are not equal to one another, but what they say is."""
    return [
        (each.synced, [(evolve(one, received=0.0, error=None), str(one.error)) for one in each.events])
        for each in batches
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@given(told=st.lists(batches, max_size=3))
def test_what_is_recorded_is_played_back(folder: Path, told: list[Batch]) -> None:
    path = folder / "any.jsonl"
    path.unlink(missing_ok=True)
    synced, expected = False, []
    for each in told:  # it stays synced; and a batch in which nothing is told is not recorded
        was, synced = synced, synced or each.synced
        if each.events or synced != was:
            expected.append(evolve(each, synced=synced))
    record(path, *expected)
    assert comparable(replayed(path)) == comparable(expected)


def web(port: int = 80, name: str = "web") -> ObjectEvent:
    made = KubeService("default", name, (IPv4Address("10.96.0.10"),), (Port("", port, Protocol.TCP),))
    return ObjectEvent("Service", "default", name, made, time.monotonic())


def test_of_a_cluster(double: ApiDouble, watch: Watch, tmp_path: Path) -> None:
    path = tmp_path / "cluster.jsonl"
    double.put("services", service("web"))
    with Recorder(watch(), path) as recorder:
        listener = Listener(recorder)
        listener.until(lambda: listener.synced)
        double.put("services", service("shop", number=2))
        double.delete("services", "default", "web")
        listener.until(lambda: listener.ports() == ports_of(double))
        assert "KubeWatch" in repr(recorder)
    again = Listener(Replay(path, speed=inf))
    again.until(lambda: again.ports() == ports_of(double))
    assert again.synced
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_half_written_is_passed_over_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "crash.jsonl"
    record(path, Batch((web(),), True), Batch((web(81),), True))
    whole = path.read_bytes()
    for end in range(len(whole) - 1, whole.index(b"\n"), -1):
        path.write_bytes(whole[:end])
        assert len(replayed(path)) == whole[:end].count(b"\n") - 1
    path.write_bytes(whole[:-10])
    record(path, Batch((web(82),), True))
    assert [each.events[0].object for each in replayed(path)] == [web(80).object, web(82).object]


def test_what_vanished_between_two_recordings_is_told_gone(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    record(path, Batch((web(80, "a"), web(80, "b")), True))
    record(path, Batch((web(80, "b"),), False), Batch((web(80, "c"),), True))
    listener = Listener(Replay(path, speed=inf))
    listener.until(lambda: set(listener.ports()) == {"b", "c"})
    assert listener.told() == [f"+Service {name}" for name in "abbc"] + ["-Service a"]


def test_the_pace(tmp_path: Path) -> None:
    path = tmp_path / "slow.jsonl"
    record(path, Batch((web(),), False), Batch((web(81),), True))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["at"], lines[2]["at"] = 0.0, 3.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = time.monotonic()
    found = list(Replay(path, speed=3, ends=True).batches(timeout=0.1))
    assert 0.99 < time.monotonic() - start < 2.9
    first, *between, last = [len(each.events) for each in found]
    assert (first, last) == (1, 1)
    assert 1 <= len(between) <= 10
    assert not any(between)
    assert [each.synced for each in found][-2:] == [False, True]


def test_closing_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "closed.jsonl"
    record(path, Batch((web(),), True))
    replay = Replay(path)
    found = replay.batches()
    assert len(next(found).events) == 1
    closing = threading.Timer(0.05, replay.close)
    closing.start()
    assert list(found) == []
    closing.join()
    with pytest.raises(ClosedError):
        next(replay.batches())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: this is no recording"),
        (b"kind: Service\n", "line 1: this is no recording"),
        (b"{}\n", "line 1: this is no recording"),
        (b"[" * 9999, "line 1: this is no recording"),
        (b'{"format":"k8sdatapath recording","version":2}\n', "line 1: a recording of version 2, not 1"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "no.jsonl"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        Replay(path)
    assert str(caught.value) == f"{path}, {said}"


EVENT = '{"at":0,"synced":true,"events":[{"kind":"Node","namespace":"","name":"a"%s}]}'
OBJECTS = "{}", "1", '{"type":"?"}', '{"type":"KubeNode"}', '{"type":"KubeNode","name":"a","addresses":["?"]}'
DAMAGED = ["null", "{", "{}", '{"at":"?"}', EVENT.replace('"kind":"Node",', "") % ""]
DAMAGED += [EVENT % f',"object":{value}' for value in OBJECTS]


@pytest.mark.parametrize("line", DAMAGED)
def test_damage_in_the_middle_is_said(tmp_path: Path, line: str) -> None:
    path = tmp_path / "damaged.jsonl"
    record(path, Batch((web(),), True))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(SourceError, match="line 3: "):
        replayed(path)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        Replay(tmp_path / "missing")
    with pytest.raises(SourceError, match="Is a directory"):
        Recorder(Given(), tmp_path)
    with pytest.raises(SourceError, match="0 is no speed"):
        Replay(tmp_path, speed=0)


def test_a_full_disk_does_not_end_the_source(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(Given(Batch((web(),), True)), "/dev/full")
    assert len(list(recorder.batches())) == 1
    recorder.close()
    assert "nothing more is recorded" in caplog.text
