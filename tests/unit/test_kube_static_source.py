"""Manifests in files, told object by object."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8sdatapath.errors import ClosedError
from k8sdatapath.kube.events import Batch, ObjectEvent
from k8sdatapath.kube.static_source import StaticSource
from tests.api.graph import ROOT


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "examples/manifests", tmp_path / "manifests"))


@pytest.fixture
def source(directory: Path) -> Iterator[StaticSource]:
    with StaticSource(directory, interval=0.01) as source:
        yield source


def told(batch: Batch) -> dict[tuple[str, str], ObjectEvent]:
    return {(each.kind, each.name): each for each in batch.events}


def named(batch: Batch) -> set[tuple[str, str]]:
    return set(told(batch))


def test_objects_are_told_once_and_then_as_they_change(directory: Path, source: StaticSource) -> None:
    batches = source.batches()
    first = next(batches)
    assert first.synced
    assert {("Service", "web"), ("EndpointSlice", "web-ipv4")} <= named(first)
    web = directory / "web.yaml"
    web.write_text(web.read_text().replace("addresses: [10.244.1.4]", "addresses: [10.244.1.9]"))
    assert named(next(batches)) == {("EndpointSlice", "web-ipv4")}
    web.unlink()
    gone = next(batches)
    assert named(gone) >= {("Service", "web")}
    assert all(each.object is None and each.error is None for each in gone.events)


def test_a_file_that_is_wrong_leaves_things_as_they_were(directory: Path, source: StaticSource) -> None:
    batches = source.batches()
    next(batches)
    web = directory / "web.yaml"
    right = web.read_text()
    web.write_text(right.replace("port: 80\n", "port: 70000\n"))
    batch = next(batches)
    (event,) = batch.events
    assert (event.kind, event.name) == ("File", str(web))
    assert "spec.ports[0].port: 70000" in str(event.error)
    assert batch.synced
    web.write_text(right)
    assert [(each.kind, each.error) for each in next(batches).events] == [("File", None)]


def test_what_was_never_right_is_not_all(directory: Path, source: StaticSource) -> None:
    web = directory / "web.yaml"
    right = web.read_text()
    web.write_text("apiVersion: v1\nkind: Service\n")
    batches = source.batches()
    first = next(batches)
    assert not first.synced
    assert ("Service", "names") in named(first)
    web.write_text(right)
    assert next(batches).synced


def test_of_two_of_one_name_the_first_counts_and_the_other_is_told(
    directory: Path, source: StaticSource
) -> None:
    (directory / "zz.yaml").write_text((directory / "web.yaml").read_text())
    batch = next(source.batches())
    assert "there is one already" in str(told(batch)["File", str(directory / "zz.yaml")].error)
    assert told(batch)["Service", "web"].object is not None


def test_a_directory_that_goes_takes_nothing_along(directory: Path, source: StaticSource) -> None:
    batches = source.batches()
    next(batches)
    directory.rename(directory.with_name("aside"))
    (event,) = next(batches).events
    assert "No such file" in str(event.error)
    directory.with_name("aside").rename(directory)
    assert [(each.kind, each.error) for each in next(batches).events] == [("File", None)]


def test_it_ends_when_it_is_closed_and_says_when_nothing_happens(source: StaticSource) -> None:
    batches = source.batches(timeout=0.02)
    assert next(batches).events
    assert next(batches).events == ()
    threading.Timer(0.05, source.close).start()
    assert all(batch.events == () for batch in batches)
    with pytest.raises(ClosedError):
        next(source.batches())
