"""Policies, pods and peers that do not fit: refused, and the kernel is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from k8sdatapath import maps
from k8sdatapath.datapath.identity_policy import CONTRACT, IdentityPolicy
from k8sdatapath.errors import CapacityError
from k8sdatapath.model.policy import (
    EVERYBODY,
    Block,
    Operator,
    Policy,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    Toward,
)
from k8sdatapath.model.workload import Workload
from k8sdatapath.objects import Object, ObjectSpec

pytestmark = pytest.mark.kernel

ROOM = {"kd_rules": 24, "kd_ipcache": 8, "kd_networks": 6, "kd_policies": 8, "kd_names": 32}
API, WEB = (Selector([Requirement("k8s:app", Operator.IN, [app])]) for app in ("api", "web"))


def pod(app: str, last: int) -> Workload:
    return Workload.pod(f"shop/{app}-{last}", {"app": app}, addresses=[f"10.0.0.{last}"])


def ports(first: int, last: int) -> Policy:
    """A range needs up to 30 entries."""
    rule = Rule("all", Toward.INGRESS, [EVERYBODY], [PortMatch(6, first, last)])
    return Policy("ports", API, [rule], {Toward.INGRESS})


def networks(number: int) -> Policy:
    blocks = [Block(f"192.0.{at}.0/24") for at in range(number)]
    return Policy("networks", API, [Rule("all", Toward.INGRESS, blocks)], {Toward.INGRESS})


@pytest.fixture
def loaded() -> Iterator[Object]:
    spec = ObjectSpec.from_file("pod").with_config(enforce=True).with_maps(**ROOM)
    with spec.load() as loaded:
        yield loaded


def kernel(loaded: Object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    contract: dict[str, Any] = {**CONTRACT}
    for name, kind in contract.items():
        table = loaded.map(name, kind)
        found[name] = [*table] if isinstance(table, maps.Array | maps.PerCpuArray) else dict(table.items())
    return found


Change = Callable[[IdentityPolicy], object]

TOO_MUCH: dict[str, Change] = {
    "rules of a new policy": lambda policy: policy.upsert(ports(1, 65534)),
    "rules of a policy that is there": lambda policy: policy.upsert(
        Policy("first", API, ports(1, 65534).rules, {Toward.INGRESS})
    ),
    "rules beside others": lambda policy: policy.apply([ports(1, 65534), networks(1)]),
    "networks": lambda policy: policy.upsert(networks(9)),
    "peers": lambda policy: policy.learn({pod("far", 100 + at): 400 + at for at in range(9)}),
}


@pytest.mark.parametrize("change", TOO_MUCH)
def test_what_does_not_fit_changes_nothing(loaded: Object, change: str) -> None:
    with IdentityPolicy.bind(loaded) as policy:
        policy.learn({pod("web", 1): 300})
        policy.attach(pod("api", 2), 301)
        policy.upsert(Policy("first", API, [Rule("web", Toward.INGRESS, [WEB])], {Toward.INGRESS}))
        policy.release()
        policies, endpoints = dict(policy.policies), policy.endpoints
        before = kernel(loaded)
        with pytest.raises(CapacityError):
            TOO_MUCH[change](policy)
        assert kernel(loaded) == before
        assert (policy.policies, policy.endpoints) == (policies, endpoints)
        policy.upsert(ports(8080, 8080))  # what fits, still does
        assert set(policy.policies) == {"first", "ports"}
        policy.remove("ports")
        after = kernel(loaded)
        assert after["kd_ipcache"] == before["kd_ipcache"]
        assert after["kd_networks"] == before["kd_networks"]
        assert len(after["kd_rules"]) == len(before["kd_rules"])


def test_a_pod_that_does_not_fit_changes_nothing(loaded: Object) -> None:
    with IdentityPolicy.bind(loaded) as policy:
        there = 0
        while there < 9:
            before, endpoints = kernel(loaded), policy.endpoints
            try:
                policy.attach(pod(f"new{there}", 50 + there), 501 + there)
            except CapacityError:
                break
            there += 1
        assert 2 <= there < 9
        assert kernel(loaded) == before
        assert policy.endpoints == endpoints
