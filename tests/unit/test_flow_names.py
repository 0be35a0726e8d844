"""Who is behind the addresses of flows: now, and when they were seen."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest

from k8sdatapath.datapath import flow_names
from k8sdatapath.datapath.flow_names import KnownNames
from k8sdatapath.datapath.formerly import Formerly
from k8sdatapath.model.flow import WorkloadRef
from k8sdatapath.model.workload import Workload

CLIENT = Workload.pod("shop/client", {"app": "client"}, addresses=["10.0.1.5", "fd00::1:5"])


def test_what_a_pod_belongs_to_is_told_before_or_after_the_pod_itself() -> None:
    web, one = WorkloadRef("web", "Deployment"), WorkloadRef("one", "StatefulSet")
    here, there = Workload.pod("shop/web-1", addresses=["10.0.0.1"]), Workload.pod("shop/far")
    names = KnownNames(workload=lambda where: (there, 301))
    address, far = here.addresses[0], CLIENT.addresses[0]
    names.belongs("shop/web-1", web)
    names.belongs("shop/far", one)
    names.learn(here, 300, netns=5)
    assert (names.addresses(5), names.addresses(6)) == (here.addresses, ())
    assert [names.endpoint(each, 0).workloads for each in (address, far)] == [(web,), (one,)]
    names.belongs("shop/web-1", one)
    end = names.namespace(5)
    assert end is not None
    assert (names.endpoint(address, 0), end.workloads) == (end, (one,))
    assert names.addresses(5) == here.addresses
    names.learn(here, 300, owners=[web])
    assert names.endpoint(address, 0).workloads == (web,)
    names.belongs("shop/web-1")
    assert names.endpoint(address, 0).workloads == ()


def test_who_is_not_known_is_the_world_and_who_left_is_not_known() -> None:
    names = KnownNames()
    names.learn(CLIENT, 300)
    assert names.endpoint(CLIENT.addresses[0], 0).pod_name == "client"
    names.learn(Workload.pod("shop/next", addresses=[CLIENT.addresses[0]]), 302)
    names.forget("shop/client")  # later than its address was given to another
    assert names.endpoint(CLIENT.addresses[0], 0).pod_name == "next"
    assert names.endpoint(CLIENT.addresses[1], 0).labels == ("reserved:world",)
    assert names.endpoint(CLIENT.addresses[1], 1).labels == ("reserved:host",)
    names.vacate([CLIENT.addresses[0]])
    assert names.endpoint(CLIENT.addresses[0], 0).identity == 2


def test_a_flow_has_the_names_of_its_time() -> None:
    where, web = CLIENT.addresses[0], WorkloadRef("web", "Deployment")
    there = Workload.pod("shop/far", {"app": "far"}, addresses=[where])
    names = KnownNames(workload=lambda _: (there, 305))
    times = []

    def now() -> None:
        times.append(time.monotonic_ns())

    def who(identity: int = 0) -> list[tuple[str, int]]:
        ends = (names.endpoint(where, identity, at) for at in times)
        return [(end.pod_name, end.identity) for end in ends]

    names.learn(CLIENT, 0)
    now()
    names.learn(CLIENT, 300)  # more is known of the same
    assert who() == [("client", 300)]
    names.belongs("shop/client", web)
    now()
    names.forget("shop/client")
    now()
    names.learn(Workload.pod("shop/next", {"app": "next"}, addresses=[where]), 302)
    now()
    names.learn(Workload.pod("shop/next", {"app": "other"}, addresses=[where]), 303)
    now()
    names.vacate([where])
    now()
    names.left(there, web)
    now()
    past = [("client", 300)] * 2
    # nobody was there when it was looked for, or somebody who was found out: with the kernel's number
    assert who(7) == [*past, ("next", 302), ("next", 302), ("next", 303), ("far", 7), ("far", 305)]
    assert names.endpoint(where, 0, times[1]).workloads == (web,)
    assert names.endpoint(where, 0).pod_name == "far"


def test_a_flow_has_what_its_pod_belonged_to_then() -> None:
    names, web, one = KnownNames(), WorkloadRef("web", "Deployment"), WorkloadRef("one", "StatefulSet")
    where, times = CLIENT.addresses[0], []
    for owner in web, one:
        names.learn(CLIENT, 300)
        names.belongs("shop/client", owner)
        times.append(time.monotonic_ns())
    names.belongs("shop/client")  # as it is told of a pod that has gone
    names.forget("shop/client")
    assert [names.endpoint(where, 0, at).workloads for at in times] == [(web,), (one,)]


def test_the_namespace_of_who_is_there_is_known_after_any_number_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow_names, "_MOST_NAMESPACES", 10)
    names = KnownNames()
    names.learn(CLIENT, 300, netns=1)
    for number in range(2, 100):
        pod = Workload.pod(f"shop/job-{number}", addresses=["10.0.1.6"])
        names.learn(pod, 301, netns=number)
        names.vacate(pod.addresses)
    known = {cookie for cookie in range(1, 100) if names.namespace(cookie) is not None}
    assert known == {1, *range(91, 100)}


def test_who_has_left_is_not_remembered_for_ever() -> None:
    former: Formerly[int, str] = Formerly(most=100)
    before = time.monotonic_ns()
    for number in range(101):
        former.left(number, f"v{number}")
    assert [former.at(number, before) for number in (0, 1, 100)] == [None, "v1", "v100"]
    for number in range(1000):
        former.left(7, f"w{number}")
    assert (former.at(7, before), former.last(7), former.at(7, None)) == ("w984", "w999", None)
    assert former.at(7, time.monotonic_ns()) is None


def test_domains_are_not_kept_for_ever() -> None:
    names, asker = KnownNames(), ip_address("10.0.0.1")
    for number in range(100_001):
        names.resolved(asker, f"n{number}", [ip_address(number)])
    assert names.domains(ip_address(0), asker) == ()
    assert names.domains(ip_address(100_000), asker) == ("n100000",)
