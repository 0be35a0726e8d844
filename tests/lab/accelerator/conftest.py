"""One node for all tests of accelerated sockets: what each changes is undone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8sdatapath import Accelerated, Lab
from k8sdatapath.datapath.flow import Timeouts
from k8sdatapath.lab.lab import LabNode
from tests.support.acceleration import SMALL, choose
from tests.support.watching import wait


@pytest.fixture(scope="package", params=[True, False], ids=["at-the-socket", "by-packet"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A node whose services are balanced in one way or the other, and a second one. One reads requests."""
    with Lab.start(
        nodes=2,
        capacity=SMALL,
        policy=True,
        l7=request.param,
        accelerate=True,
        flows="aggregated",
        pod_sockets=request.param,
        timeouts=Timeouts(established=2),
    ) as lab:
        for name, node in (
            ("client", lab.node),
            ("web", lab.node),
            ("other", lab.node),
            ("far", lab.nodes[1]),
        ):
            lab.pod(name, node, labels={"app": name})
        yield lab


@pytest.fixture
def node(lab: Lab) -> Iterator[LabNode]:
    """All connections to pods and services are chosen."""
    choose(lab.node, Accelerated("10.0.0.0/8"), Accelerated("fd00::/8"), Accelerated("127.0.0.0/8"))
    yield lab.node
    wait(lambda: not list(lab.node.accelerator.pairs()))
    lab.node.services.plan([]).apply()
    lab.node.policy.remove(*lab.node.policy.policies)
