"""Events about objects: written by a thread, counted up, not too many, and never in anybody's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from k8sdatapath.errors import ClosedError
from k8sdatapath.kube import EventWriter
from k8sdatapath.reconcile import State, Status
from tests.support.api_double import ApiDouble
from tests.support.api_requests import Refusal
from tests.support.watching import client, wait

WEB = ("Service", "shop", "web")
FULL = Status(State.ERROR, "3 slots needed, 2 fit")


@pytest.fixture
def api() -> Iterator[ApiDouble]:
    with ApiDouble() as double:
        yield double


@pytest.fixture
def writer(api: ApiDouble) -> Iterator[EventWriter]:
    with EventWriter(client(api), "n1") as writer:
        yield writer
    assert not [each for each in threading.enumerate() if each.name == "events"]


def test_an_error_and_its_end_are_told(api: ApiDouble, writer: EventWriter) -> None:
    writer.tell(WEB, FULL)
    wait(lambda: writer.written == 1)
    writer.tell(WEB, Status(State.PROGRAMMED))
    wait(lambda: writer.written == 2)
    (method, path, error), (_, _, over) = api.written
    assert (method, path) == ("POST", "/api/v1/namespaces/shop/events")
    assert error["involvedObject"] == {
        "kind": "Service",
        "namespace": "shop",
        "name": "web",
        "apiVersion": "v1",
    }
    assert (error["type"], error["reason"]) == ("Warning", "Error")
    assert error["message"] == "on node n1: 3 slots needed, 2 fit"
    assert error["source"] == {"component": "k8sdatapath", "host": "n1"}
    assert error["firstTimestamp"].endswith("Z")
    assert (over["type"], over["reason"]) == ("Normal", "Programmed")


def test_the_same_again_is_counted_up_and_forgotten_events_are_written_anew(
    api: ApiDouble, writer: EventWriter
) -> None:
    writer.tell(WEB, FULL)
    wait(lambda: writer.written == 1)
    writer.tell(WEB, FULL)
    wait(lambda: writer.written == 2)
    method, path, change = api.written[1]
    assert method == "PATCH"
    assert path.endswith("/events/" + api.written[0][2]["metadata"]["name"])
    assert change["count"] == 2

    def forgotten(method: str, path: str) -> None:
        if method == "PATCH":
            raise Refusal(404, "NotFound")

    api.refuse_write = forgotten
    writer.tell(WEB, FULL)
    wait(lambda: writer.written == 3)
    assert api.written[2][0] == "POST"


def test_a_node_has_its_events_in_the_default_namespace(api: ApiDouble, writer: EventWriter) -> None:
    writer.tell(("Node", "", "n1"), FULL)
    wait(lambda: writer.written == 1)
    assert api.written[0][1] == "/api/v1/namespaces/default/events"
    assert "namespace" not in api.written[0][2]["involvedObject"]


def test_there_are_not_too_many_and_of_an_object_the_latest_counts(api: ApiDouble) -> None:
    with EventWriter(client(api), "n1", per_second=0.001, burst=2) as writer:
        for number in range(50):
            for name in "abc":
                writer.tell(("Service", "shop", name), Status(State.ERROR, f"error {number}"))
        wait(lambda: writer.written == 2)
    assert len(api.written) == 2


def test_a_server_that_refuses_or_is_away_holds_up_nobody(api: ApiDouble, writer: EventWriter) -> None:
    def forbidden(method: str, path: str) -> None:
        raise Refusal(403, "Forbidden")

    api.refuse_write = forbidden
    writer.tell(WEB, FULL)
    wait(lambda: writer.failed == 1)
    api.refuse_write = lambda method, path: None
    writer.tell(WEB, FULL)
    wait(lambda: writer.written == 1)


def test_a_closed_writer_says_so(api: ApiDouble) -> None:
    writer = EventWriter(client(api), "n1")
    writer.close()
    writer.close()
    with pytest.raises(ClosedError, match="writer of events is closed"):
        writer.tell(WEB, FULL)
