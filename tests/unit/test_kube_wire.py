"""Both readers of what an API server sends agree, on what is right and on what is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath.kube.fast import FastReader
from k8sdatapath.kube.objects import Endpoint, EndpointSlice, KubeRaw, KubeService
from k8sdatapath.kube.resources import RESOURCES, Resource
from k8sdatapath.kube.wire import GarbledError, Item, Notice, PlainReader, Reader, reader

WHERE = "https://192.0.2.1:6443"

SERVICE: dict[str, Any] = {
    "metadata": {
        "name": "web",
        "namespace": "shop",
        "uid": "u-1",
        "resourceVersion": "7",
        "labels": {"app": "web"},
        "annotations": {"a": "b"},
        "managedFields": [{"fieldsV1": {"f:spec": {}}}],
    },
    "spec": {
        "type": "NodePort",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
        "ports": [
            {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http", "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
        ],
        "selector": {"app": "web"},
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
        "externalTrafficPolicy": "Local",
    },
    "status": {"loadBalancer": {}},
}
SLICE: dict[str, Any] = {
    "metadata": {
        "name": "web-abcde",
        "namespace": "shop",
        "uid": "u-2",
        "resourceVersion": "8",
        "labels": {"kubernetes.io/service-name": "web"},
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05Z"},
    },
    "addressType": "IPv4",
    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    "endpoints": [
        {
            "addresses": ["10.244.1.2"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": "n1",
            "zone": "z1",
            "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}]},
            "targetRef": {"kind": "Pod", "name": "web-1"},
        },
        {"addresses": ["10.244.2.2"], "conditions": {"ready": False}},
    ],
}
ORDINARY = {"services": SERVICE, "endpointslices": SLICE}


def readers(name: str) -> tuple[PlainReader, FastReader]:
    plain = PlainReader(RESOURCES[name], WHERE)
    fast = FastReader.of(plain)
    assert fast is not None
    return plain, fast


def parts(item: Item) -> object:
    """All there is to tell of it; errors are not equal to one another, so as text."""
    return evolve(item, error=None), str(item.error), getattr(item.object, "where", "")


def told(read: Reader, value: object) -> object:
    """What is made of an object, as an item of a list and in a watch."""
    page = read.page(json.dumps({"metadata": {"resourceVersion": "9"}, "items": [value]}).encode())
    try:
        _, item = read.event(json.dumps({"type": "ADDED", "object": value}).encode())
    except GarbledError as error:
        return page.garbled, page.items, str(error)
    assert isinstance(item, Item)
    return [parts(each) for each in page.items], page.garbled, parts(item)


def endpoints_told(fast: FastReader, kind: str, endpoints: list[Any]) -> tuple[Endpoint, ...]:
    value = SLICE | {"endpoints": endpoints, "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"}
    _, item = fast.event(json.dumps({"type": kind, "object": value}).encode())
    assert isinstance(item, Item)
    assert isinstance(item.object, EndpointSlice)
    return item.object.endpoints


def test_endpoints_that_stay_are_the_very_same_until_their_slice_goes() -> None:
    _, fast = readers("endpointslices")
    first, second = SLICE["endpoints"]
    third = second | {"addresses": ["10.244.2.3"]}
    page = fast.page(json.dumps({"metadata": {"resourceVersion": "9"}, "items": [SLICE]}).encode())
    assert isinstance(page.items[0].object, EndpointSlice)
    one, two = page.items[0].object.endpoints
    moved = endpoints_told(fast, "MODIFIED", [third, first])
    assert moved[1] is one
    assert moved[0] is endpoints_told(fast, "MODIFIED", [third])[0]
    again = endpoints_told(fast, "MODIFIED", [second])  # only what a slice has now is remembered
    assert again[0] == two
    assert again[0] is not two
    endpoints_told(fast, "DELETED", [second])
    assert endpoints_told(fast, "ADDED", [second])[0] is not again[0]
    last = endpoints_told(fast, "MODIFIED", [second])
    fast.page(b'{"metadata":{"resourceVersion":"9"},"items":[]}')
    assert endpoints_told(fast, "ADDED", [second])[0] is not last[0]


@pytest.mark.parametrize("name", ORDINARY)
def test_the_fast_reader_knows_the_ordinary(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = readers(name)
    expected = told(plain, ORDINARY[name])
    monkeypatch.setattr(PlainReader, "item", lambda *_: pytest.fail("it was read slowly"))
    assert told(fast, ORDINARY[name]) == expected


def ways(value: object, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all that is inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way] * bool(way) + [each for key, inner in inside for each in ways(inner, (*way, key))]


KNOWN_FIELDS: dict[str, list[tuple[str, ...]]] = {
    "services": [
        ("spec", "externalIPs"),
        ("spec", "loadBalancerSourceRanges"),
        ("spec", "healthCheckNodePort"),
        ("spec", "sessionAffinityConfig"),
        ("metadata", "labels", "service.kubernetes.io/service-proxy-name"),
        ("metadata", "annotations", "k8sdatapath.io/selection"),
        ("status", "loadBalancer", "ingress"),
        ("kind",),
        ("apiVersion",),
    ],
    "endpointslices": [("kind",), ("apiVersion",)],
}
WORDS = """
None ClientIP Local Cluster LoadBalancer ClusterIP ExternalName TCP UDP SCTP IPv6 FQDN random maglev
Service v1 EndpointSlice http dns 10.0.0.1 010.0.0.1 10.1 127.0.0.1 224.0.0.1 169.254.1.1 0.0.0.0
255.255.255.255 10.0.0.0/8 fd00::1 ::ffff:1.2.3.4 fe80::1 ff02::1 :: ::1 fd00::1%eth0 64:ff9b::1
1:2:3:4:5:6:7::"""
words = st.sampled_from([*WORDS.split(), "", " 10.0.0.1", "10.0.0.1\n", "10.0.0.1\0", "Upper", "x" * 300])
numbers = st.sampled_from([0, 1, 80, 8080, 65535, 65536, -1, 80.0, 80.5, 1e400, 10**30, float("nan")])
junk = st.recursive(
    st.none() | st.booleans() | words | words | numbers | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "ip", "port", "addresses"]) | st.text(max_size=2), inner, max_size=3
        )
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("name", ORDINARY)
@settings(max_examples=500)
@given(data=st.data())
def test_both_readers_agree_on_what_is_not_ordinary(name: str, data: st.DataObject) -> None:
    mutant = json.loads(json.dumps(ORDINARY[name]))
    for way in data.draw(
        st.lists(st.sampled_from(ways(mutant) + KNOWN_FIELDS[name]), min_size=1, max_size=3)
    ):
        holder = mutant
        try:
            for key in way[:-1]:
                holder = holder[key]
            if isinstance(holder, dict) and data.draw(st.integers(0, 3)) == 0:
                del holder[way[-1]]
            elif isinstance(holder, list) and data.draw(st.booleans()):
                holder.append(json.loads(json.dumps(holder[way[-1]])))
            else:
                holder[way[-1]] = data.draw(junk)
        except (KeyError, IndexError, TypeError):  # an earlier mutation took it away
            continue
    plain, fast = readers(name)
    assert told(fast, mutant) == told(plain, mutant)


@pytest.mark.parametrize("name", [*ORDINARY, "nodes"])
@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_are_read_or_garbled(name: str, data: st.DataObject) -> None:
    line = bytearray(json.dumps({"type": "MODIFIED", "object": ORDINARY.get(name, SERVICE)}).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(line) - 1))
        line[start : start + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=3))
    read = reader(RESOURCES[name], WHERE)
    for method in read.event, read.page:
        with suppress(GarbledError):
            method(bytes(line))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["services", "nodes"])
class TestNotices:
    def test_a_bookmark_is_a_version(self, name: str) -> None:
        line = {"type": "BOOKMARK", "object": {"kind": "Service", "metadata": {"resourceVersion": "12"}}}
        kind, notice = reader(RESOURCES[name], WHERE).event(json.dumps(line).encode())
        assert (kind, notice) == ("BOOKMARK", Notice("12"))

    @pytest.mark.parametrize(
        ("status", "expired"),
        [
            ({"code": 410, "reason": "Expired", "message": "too old resource version: 1 (9)"}, True),
            ({"code": 410, "reason": "Gone"}, True),
            (
                {"code": 504, "reason": "Timeout", "message": "Too large resource version: 9, current: 1"},
                True,
            ),
            ({"code": 504, "reason": "Timeout", "message": "timed out"}, False),
            ({"code": 500, "reason": "InternalError"}, False),
            ({"code": "410", "message": ["?"]}, False),
            ({}, False),
        ],
    )
    def test_an_error_says_whether_to_list_anew(
        self, name: str, status: dict[str, Any], expired: bool
    ) -> None:
        line = {"type": "ERROR", "object": {"kind": "Status", "metadata": {}, **status}}
        kind, notice = reader(RESOURCES[name], WHERE).event(json.dumps(line).encode())
        assert kind == "ERROR"
        assert isinstance(notice, Notice)
        assert notice.expired is expired

    @pytest.mark.parametrize(
        "line",
        [b"", b"null", b"{}", b'{"type":"ADDED"}', b'{"type":"WEIRD","object":{}}', b"[" * 100_000, b"\xff"],
    )
    def test_garbage_is_garbled(self, name: str, line: bytes) -> None:
        with pytest.raises(GarbledError):
            reader(RESOURCES[name], WHERE).event(line)


def test_an_item_without_a_name_does_not_hide_the_others() -> None:
    body = {
        "metadata": {"resourceVersion": "9", "continue": "more"},
        "items": [SERVICE, {}, 1, None, SERVICE],
    }
    for read in readers("services"):
        page = read.page(json.dumps(body).encode())
        assert [each.name for each in page.items] == ["web", "web"]
        assert (page.version, page.following, page.garbled) == ("9", "more", 3)


def test_other_resources_are_told_as_they_are() -> None:
    value = {"metadata": {"name": "x", "resourceVersion": "1"}, "spec": {"any": [1]}}
    resource = Resource("example.com/v1", "Thing", "things")
    [item] = reader(resource, WHERE).page(json.dumps({"metadata": {}, "items": [value]}).encode()).items
    assert item.object == KubeRaw("Thing", "", "x", value)
    assert resource.path == "/apis/example.com/v1/things"


def test_without_msgspec_the_plain_reader_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "k8sdatapath.kube.fast", None)
    read = reader(RESOURCES["services"], WHERE)
    assert isinstance(read, PlainReader)
    _, item = read.event(json.dumps({"type": "ADDED", "object": SERVICE}).encode())
    assert not isinstance(item, Notice)
    assert isinstance(item.object, KubeService)
