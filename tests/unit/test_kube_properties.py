"""Random manifests: the valid are read as a simple oracle reads them, the mutilated are at most refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube import StaticYaml
from k8sdatapath.model import Service

EXAMPLES = Path(__file__).parents[2] / "examples/manifests"

CONDITIONS: list[dict[str, bool | None]] = [
    {},
    {"ready": None, "terminating": None},
    {"ready": True, "terminating": True},
    {"ready": False, "serving": True, "terminating": True},
    {"ready": False, "serving": False, "terminating": True},
    {"ready": False, "terminating": True},
    {"ready": False, "serving": True},
]
PREFIXES = {"IPv4": "10.244.1.", "IPv6": "fd00:10:244:1::"}
numbers = st.sampled_from([1, 80, 8080, 65535])


@st.composite
def services(draw: st.DrawFn, number: int) -> dict[str, Any]:
    names = draw(st.sampled_from([[""], ["http", "dns"]]))
    four, six = f"10.96.0.{number + 1}", f"fd00:10:96::{number + 1}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"s{number}", "namespace": draw(st.sampled_from(["default", "shop"]))},
        "spec": {
            "clusterIPs": draw(st.sampled_from([[four], [six], [four, six], [six, four], ["None"]])),
            "ports": [
                {"name": name, "port": 80 + index, "protocol": draw(st.sampled_from(["TCP", "UDP"]))}
                for index, name in enumerate(names)
            ],
        },
    }


@st.composite
def slices(draw: st.DrawFn, number: int, service: dict[str, Any]) -> dict[str, Any]:
    """A slice of the service, or one that misses it by a little. Few addresses, so that slices overlap."""
    family = draw(st.sampled_from(["IPv4", "IPv6"]))
    found = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"slice-{number}",
            "namespace": service["metadata"]["namespace"],
            "labels": {"kubernetes.io/service-name": service["metadata"]["name"]},
        },
        "addressType": family,
        "ports": [port | {"port": draw(numbers)} for port in service["spec"]["ports"]],
        "endpoints": [
            {
                "addresses": [f"{PREFIXES[family]}{last}" for last in lasts],
                "conditions": draw(st.sampled_from(CONDITIONS)),
            }
            for lasts in draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2), max_size=4))
        ],
    }
    miss = draw(st.sampled_from([{}, {}, {}, {"namespace": "other"}, {"labels": {}}]))
    found["metadata"] |= miss
    found["ports"][0] |= draw(st.sampled_from([{}, {}, {}, {"name": "other"}, {"protocol": "SCTP"}]))
    return found


@st.composite
def manifests(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = [draw(services(number)) for number in range(draw(st.integers(1, 2)))]
    found += [draw(slices(number, draw(st.sampled_from(found)))) for number in range(draw(st.integers(0, 4)))]
    return draw(st.permutations(found))


Backends = dict[tuple[str, int], tuple[str, bool]]
Oracle = dict[tuple[str, int, str], Backends]


def oracle(objects: list[dict[str, Any]]) -> Oracle:
    """frontend -> place -> state and whether it is given flows, with no thought of speed."""
    parts = [each for each in objects if each["kind"] == "EndpointSlice"]
    return {
        (ip, port["port"], port["protocol"]): oracle_backends(service, ip, port, parts)
        for service in objects
        if service["kind"] == "Service"
        for ip in service["spec"]["clusterIPs"]
        if ip != "None"
        for port in service["spec"]["ports"]
    }


def oracle_backends(
    service: dict[str, Any], ip: str, port: dict[str, Any], parts: list[dict[str, Any]]
) -> Backends:
    copies = [
        ((endpoint["addresses"][0], own["port"]), oracle_state(**endpoint["conditions"]))
        for part in parts
        if part["metadata"]["namespace"] == service["metadata"]["namespace"]
        if part["metadata"]["labels"].get("kubernetes.io/service-name") == service["metadata"]["name"]
        if part["addressType"] == ("IPv6" if ":" in ip else "IPv4")
        for own in part["ports"]
        if (own["name"], own["protocol"]) == (port["name"], port["protocol"])
        for endpoint in part["endpoints"]
    ]
    # the better copy counts: states are in that order
    best = {place: max(state for other, state in copies if other == place) for place, _ in copies}
    return {
        place: ("ACTIVE" if state == "3 ready" else "TERMINATING", state in ("3 ready", "2 leaving"))
        for place, state in best.items()
        if port["protocol"] != "UDP" or not state.startswith("0")
    }


def oracle_state(
    ready: bool | None = None, serving: bool | None = None, terminating: bool | None = None
) -> str:
    if ready is not False:
        return "3 ready"
    if serving is False:
        return "0 dead"
    return "2 leaving" if terminating else "1 unready"


def seen(services: tuple[Service, ...]) -> Oracle:
    return {
        (str(one.address), one.port, one.protocol.name): {
            (str(backend.address), backend.port): (backend.state.name, backend.cluster)
            for backend in one.backends
        }
        for one in services
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


@given(objects=manifests(), cut=st.integers(0, 7))
def test_valid_manifests_are_read_as_the_oracle_reads_them(
    folder: Path, objects: list[dict[str, Any]], cut: int
):
    """However they are spread over files and formats."""
    documents = (yaml.safe_dump(each, explicit_start=True) for each in objects[:cut])
    (folder / "a.yaml").write_text("".join(documents))
    (folder / "b.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects[cut:]}))
    assert seen(StaticYaml(folder).read()) == oracle(objects)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 80, 65535, 65536, 70000, -1, 80.0, float("nan"), float("inf")])
    | st.sampled_from(
        ["", "None", "10.1", "10.96.0.10", "010.0.0.1", "fd00::1", "::ffff:1.2.3.4", "TCP", "tcp", "List"]
    )
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def paths(value: object, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all that is inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way] * bool(way) + [each for key, inner in inside for each in paths(inner, (*way, key))]


@given(objects=manifests(), data=st.data())
def test_a_mutilated_field_is_read_or_refused(
    folder: Path, objects: list[dict[str, Any]], data: st.DataObject
):
    mutant: Any = copy.deepcopy(objects)
    for way in data.draw(st.lists(st.sampled_from(paths(objects)), min_size=1, max_size=3)):
        holder = mutant
        try:
            for key in way[:-1]:
                holder = holder[key]
            if isinstance(holder, dict) and data.draw(st.booleans()):
                del holder[way[-1]]
            else:
                holder[way[-1]] = data.draw(junk)
        except (KeyError, IndexError, TypeError):  # an earlier mutation took it away
            continue
    read_or_refused(
        folder, "mutant.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": mutant}).encode()
    )


@given(data=st.data())
def test_mutilated_text_is_read_or_refused(folder: Path, data: st.DataObject):
    text = bytearray((EXAMPLES / "web.yaml").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text) - 1))
        length = data.draw(st.integers(0, 40))
        put = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\n", b"- ", b": ", b"[", b"}", b"&a ", b"*a", b"'"])
        )
        text[start : start + length] = put or text[:length]
    read_or_refused(folder, "mutant.yaml", bytes(text))


def read_or_refused(folder: Path, name: str, content: bytes) -> None:
    path = folder / "mutants" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    try:
        services = StaticYaml(path).read()
    except ManifestError as error:
        assert error.where.startswith(str(path))  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
    else:
        assert len({service.frontend for service in services}) == len(services)
