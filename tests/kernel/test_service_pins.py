"""A service table over pinned maps: one writer at a time, readers whenever they like."""

from __future__ import annotations

import pytest

from k8sdatapath import maps
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import LayoutError, PinsBusyError, StalePlanError
from k8sdatapath.layout import u32
from k8sdatapath.model import Backend, Service
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.pins import PinDir

ONE, TWO = (Service("10.96.0.10", port, backends=[Backend("10.244.1.2", port)]) for port in (80, 81))


@pytest.fixture
def pinned(pins: PinDir) -> PinDir:
    ObjectSpec.from_file("pod").load(pins=pins).close()
    return pins


def test_a_second_writer_is_refused_and_a_reader_is_not(pinned: PinDir) -> None:
    with ServiceTable.bind(pinned) as first, ServiceTable.bind(pinned) as second:
        first.upsert(ONE)
        with pytest.raises(PinsBusyError):
            second.upsert(TWO)
        assert first.dump() == (ONE,)
        with ServiceTable.bind(pinned) as reader:
            assert reader.dump() == (ONE,)
            assert not reader.plan([ONE, TWO]).empty


def test_the_next_writer_goes_on_from_what_the_last_one_left(pinned: PinDir) -> None:
    with ServiceTable.bind(pinned) as late:
        with ServiceTable.bind(pinned) as early:
            early.upsert(ONE)
        late.upsert(TWO)
        assert set(late.dump()) == {ONE, TWO}
        for service in (ONE, TWO):
            assert set(late.resolve(service.frontend).shares) == set(service.backends)


def test_a_plan_that_somebody_else_has_overtaken_is_refused(pinned: PinDir) -> None:
    with ServiceTable.bind(pinned) as late:
        plan = late.plan([TWO])
        with ServiceTable.bind(pinned) as early:
            early.upsert(ONE)
        with pytest.raises(StalePlanError):
            plan.apply()


def test_a_node_refuses_maps_of_another_version_and_leaves_them_alone(pins: PinDir) -> None:
    small = Capacity(services=16, backends=16, slots=64, flows=64)
    config = NodeConfig(pins=pins, tc_lb=False, capacity=small)
    with Node.open(config) as node:
        node.services.upsert(Service("10.96.0.10", 80, backends=[Backend("10.244.1.1", 8080)]))
    pins.map_path("kd_sets").unlink()
    with maps.Array[u32].create("kd_sets", 48) as other:
        pins.pin(other.fd, pins.map_path("kd_sets"))
    before = pins.maps
    with pytest.raises(LayoutError, match=r"kd_sets.* value size 4 instead of 8.*runs on as it is"):
        Node.open(config)
    assert pins.maps == before
