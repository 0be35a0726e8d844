"""ServiceTable over maps in memory: plans, idempotence, takeover, room, and a crash at every line."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from ipaddress import ip_address
from itertools import permutations
from types import FrameType
from typing import Any

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from k8sdatapath import maps
from k8sdatapath.datapath import service_addresses, service_maps, service_table
from k8sdatapath.datapath.service_rows import slots
from k8sdatapath.datapath.service_table import CONTRACT, ServiceTable
from k8sdatapath.errors import (
    CapacityError,
    ClosedError,
    ContractError,
    KeyNotFoundError,
    ModelError,
    ServiceNotFoundError,
    StalePlanError,
)
from k8sdatapath.layout import layout_of
from k8sdatapath.maps.memory import in_memory
from k8sdatapath.model import (
    Backend,
    BackendState,
    Exposure,
    Frontend,
    FrontendKind,
    Scope,
    Selection,
    Service,
    network,
)
from k8sdatapath.tables import backends, grace, sets
from k8sdatapath.tables.backends import FREE, BackendRow
from k8sdatapath.tables.frontends import NO_SERVICE, FrontendKey, FrontendRow

MMAPABLE = 1 << 10


def memory(*, frontends: int = 16, slots: int = 64, rows: int = 64) -> dict[str, Any]:
    """The maps of the contract, in this process."""
    sizes = {"kd_frontends": frontends, "kd_sets": 3 * frontends, "kd_slots": slots, "kd_backends": rows}
    return {
        name: in_memory(
            kind, name, sizes.get(name, 16), flags=MMAPABLE if issubclass(kind, maps.Array) else 0
        )
        for name, kind in CONTRACT.items()
    }


def service(port: int, *hosts: int, **options: Any) -> Service:
    return Service(
        "10.96.0.10", port, backends=[Backend(f"10.244.1.{host}", 8080) for host in hosts], **options
    )


def answers(kernel: dict[str, Any], frontend: Frontend, scope: Scope = Scope.CLUSTER) -> set[Backend]:
    """Who might get a new flow, by the lookups that the programs make, in code of their own."""
    found = [
        row
        for key, row in kernel["kd_frontends"].items()
        if (key.addr, key.port) == (frontend.address, frontend.port)
    ]
    if not found:
        return set()
    run = kernel["kd_sets"][3 * found[0].service + scope]
    ids = [
        kernel["kd_slots"][slot // 16].backend[slot % 16]
        for slot in range(run.offset, run.offset + run.count)
    ]
    rows = [(id, kernel["kd_backends"][id & 0x3FFFFF]) for id in ids]
    assert all(row.id == id for id, row in rows), "a slot names a row of another generation"
    return {Backend(row.addr, row.port) for _, row in rows}


def rows_in_use(kernel: dict[str, Any]) -> int:
    return sum(row.state != FREE for row in kernel["kd_backends"])


def test_a_plan_is_worked_out_first_and_says_what_it_will_do() -> None:
    kernel = memory()
    with ServiceTable.bind(kernel) as table:
        plan = table.plan([service(80, 1, 2, name="default/web:http")])
        assert "+ default/web:http (10.96.0.10:80/TCP): 2 backends" in str(plan)
        assert len(kernel["kd_frontends"]) == 0
        report = plan.apply()
        assert (report.added, report.changed, report.removed) == (1, 0, 0)
        assert answers(kernel, Frontend("10.96.0.10", 80)) == {
            Backend("10.244.1.1", 8080),
            Backend("10.244.1.2", 8080),
        }
        plan = table.plan([service(80, 2, 3, name="default/web:http")])
        assert "+10.244.1.3:8080" in str(plan)
        assert "-10.244.1.1:8080" in str(plan)
        plan.apply()
        assert "- " in str(table.plan([]))


def test_what_is_as_wanted_is_not_touched() -> None:
    wanted = [service(80, 1), service(81, 1, 2, selection=Selection.MAGLEV)]
    with ServiceTable.bind(memory(slots=512)) as table:
        table.plan(wanted).apply()
        plan = table.plan(wanted)
        assert plan.empty
        assert plan.unchanged == 2
        assert plan.apply().changed == 0


def test_a_name_is_learnt_without_a_change() -> None:
    with ServiceTable.bind(memory()) as table:
        table.upsert(service(80, 1))
        assert table.plan([service(80, 1, name="default/web")]).empty
        assert table.dump()[0].name == "default/web"


def test_a_plan_made_before_another_change_is_refused() -> None:
    with ServiceTable.bind(memory()) as table:
        plan = table.plan([service(80, 1)])
        table.upsert(service(81, 1))
        with pytest.raises(StalePlanError):
            plan.apply()
        assert table.dump() == (service(81, 1),)


def test_one_frontend_has_one_service() -> None:
    with ServiceTable.bind(memory()) as table, pytest.raises(ModelError, match="claimed by two"):
        table.plan([service(80, 1), service(80, 2)])


def test_remove_is_idempotent_and_get_says_what_is_missing() -> None:
    with ServiceTable.bind(memory()) as table:
        table.upsert(service(80, 1))
        assert table.remove(Frontend("10.96.0.10", 80), Frontend("10.96.0.10", 99)).removed == 1
        assert table.remove(Frontend("10.96.0.10", 80)).removed == 0
        with pytest.raises(KeyNotFoundError, match=r"10\.96\.0\.10"):
            table.get(Frontend("10.96.0.10", 80))
        with pytest.raises(KeyNotFoundError):
            table.resolve(Frontend("10.96.0.10", 80))
        table.upsert(service(80, 1), service(443, 1), Service("10.96.0.11", 53))
        with pytest.raises(ServiceNotFoundError) as error:
            table.get(Frontend("10.96.0.10", 81))
        assert str(error.value) == (
            "no service is dialled at 10.96.0.10:81/TCP; at this address there is "
            "10.96.0.10:80/TCP, 10.96.0.10:443/TCP"
        )


def test_a_table_binds_to_what_meets_its_contract() -> None:
    kernel = memory()
    del kernel["kd_slots"]
    with pytest.raises(ContractError, match="kd_slots"):
        ServiceTable.bind(kernel)


def test_backends_that_terminate_keep_their_row_but_get_nothing_new() -> None:
    kernel = memory()
    leaving = Backend("10.244.1.1", 8080, state=BackendState.TERMINATING)
    staying = Backend("10.244.1.2", 8080)
    with ServiceTable.bind(kernel) as table:
        table.upsert(service(80, 1, 2))
        table.upsert(Service("10.96.0.10", 80, backends=[leaving, staying]))
        assert answers(kernel, Frontend("10.96.0.10", 80)) == {staying}
        assert rows_in_use(kernel) == 2
        table.upsert(Service("10.96.0.10", 80, backends=[leaving]))
        assert len(answers(kernel, Frontend("10.96.0.10", 80))) == 1


def test_a_backend_that_is_treated_otherwise_is_so_in_its_row() -> None:
    with ServiceTable.bind(memory()) as table:
        stays, leaves = Backend("10.244.1.1", 8080), Backend("10.244.1.2", 8080)
        before = evolve(service(80), backends=[stays, leaves])
        table.change([before])
        leaving = evolve(leaves, state="terminating")
        table.change([before.exchange([leaves.key], [leaving])])
        assert table.verify() == ()
        assert table.get(before.frontend).backends == (stays, leaving)


def test_a_restarted_table_takes_over_everything_including_terminating_backends() -> None:
    kernel = memory(slots=512)
    leaving = Backend("10.244.1.9", 8080, state=BackendState.TERMINATING)
    unready = Backend("10.244.1.7", 8080, cluster=False)
    gone = Backend("10.244.1.8", 8080, state=BackendState.TERMINATING, cluster=False)
    wanted = [
        Service("10.96.0.10", 80, backends=[Backend("10.244.1.1", 8080), leaving, unready, gone]),
        service(81, 1, 2, 3, selection=Selection.MAGLEV),
        Service(
            "10.96.0.10",
            82,
            backends=[Backend("10.244.1.1", 1, weight=3), Backend("10.244.1.2", 1, weight=6)],
        ),
        Service("fd00:10:96::1", 53, "UDP", backends=[Backend("fd00::1", 53)]),
    ]
    with ServiceTable.bind(kernel) as table:
        table.plan(wanted).apply()
    before = {row.id: row for row in kernel["kd_backends"] if row.state}
    with ServiceTable.bind(kernel) as table:
        assert {s.frontend for s in table.dump()} == {s.frontend for s in wanted}
        assert table.get(wanted[3].frontend) == wanted[3]
        assert [b.weight for b in table.get(wanted[2].frontend).backends] == [1, 2]
        assert table.plan(wanted[:2]).unchanged == 2  # not even the terminating backend is news
        table.plan(wanted).apply()
        assert set(table.dump()) == set(wanted)
    assert {
        row.id: row for row in kernel["kd_backends"] if row.state
    } == before  # ids, and so flows, are kept


def test_what_does_not_fit_changes_nothing() -> None:
    kernel = memory(frontends=4, rows=4, slots=1)
    with ServiceTable.bind(kernel) as table:
        table.upsert(service(80, 1, 2))
        for wanted, said in (
            ([service(port, 1) for port in range(80, 84)], "5 frontends needed, 4 fit: 1 too many"),
            ([service(80, 1, 2), service(81, 3, 4, 5)], "new backends"),
            ([service(80, *range(1, 5), selection="maglev")], "slots"),
        ):
            with pytest.raises(CapacityError, match=said):
                table.plan(wanted).apply()
            assert table.dump() == (service(80, 1, 2),)
            assert rows_in_use(kernel) == 2
        table.plan([service(81, 3, 4)]).apply()


def test_what_a_crash_left_is_free_again() -> None:
    """Killed with all rows written and no set: the same change must fit once more."""
    kernel = memory(rows=8)
    wanted = [service(80, *range(1, 8))]
    line = 1
    while rows_in_use(kernel) < 7:
        with ServiceTable.bind(kernel) as table:
            line += 1
            assert killed_at(line, table.plan(wanted).apply)
    with ServiceTable.bind(kernel) as table:
        assert not table.dump()
        table.plan(wanted).apply()
        table.upsert(service(81, 9))
    assert rows_in_use(kernel) == 8


def test_services_that_share_a_terminating_pod_leak_none_of_its_rows() -> None:
    kernel = memory()
    leaving = Backend("10.244.1.9", 8080, state=BackendState.TERMINATING)
    shared = [
        Service("10.96.0.10", port, backends=[Backend("10.244.1.1", 1), leaving]) for port in (80, 81, 82)
    ]
    with ServiceTable.bind(kernel) as table:
        table.plan(shared).apply()
    with ServiceTable.bind(kernel) as table:
        assert set(table.dump()) == set(shared)
        table.upsert(service(90, 5))
        assert rows_in_use(kernel) == 7  # an unrelated change takes no one's row
        table.plan([]).apply()
    assert rows_in_use(kernel) == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kernel: kernel["kd_frontends"].update(spoilt(service=4_000_000)),
        lambda kernel: kernel["kd_frontends"].update(spoilt(selection=77)),
        lambda kernel: kernel["kd_sets"].__setitem__(0, sets.SetRow(1 << 30, 5)),
    ],
)
def test_maps_that_no_service_table_has_written_are_refused(
    spoil: Callable[[dict[str, Any]], object],
) -> None:
    kernel = memory()
    with ServiceTable.bind(kernel) as table:
        table.upsert(service(80, 1))
    spoil(kernel)
    with pytest.raises(ContractError, match="no service table has written"):
        ServiceTable.bind(kernel)


def spoilt(**values: int) -> dict[FrontendKey, FrontendRow]:
    row = FrontendRow(1, 0, 0, 0, 0, 0)
    return {FrontendKey(service(99).address, 99, 6): evolve(row, **values)}


def test_a_closed_table_says_so() -> None:
    table = ServiceTable.bind(memory())
    table.close()
    table.close()
    for use in (table.dump, lambda: table.plan([]), lambda: table.get(service(80).frontend)):
        with pytest.raises(ClosedError, match="service table is closed"):
            use()


def test_nothing_leaks_over_many_changes() -> None:
    kernel = memory(frontends=4, rows=16, slots=4)
    chance = random.Random(1)
    with ServiceTable.bind(kernel) as table:
        for _ in range(300):
            wanted = [
                service(port, *chance.sample(range(1, 9), chance.randrange(4)))
                for port in chance.sample(range(80, 88), 2)
            ]
            table.plan(wanted).apply()
            assert set(table.dump()) == set(wanted)
            assert rows_in_use(kernel) == sum(len(s.backends) for s in wanted)
            for each in wanted:
                assert answers(kernel, each.frontend) == set(each.backends)


def test_a_row_that_is_given_again_has_another_id() -> None:
    kernel = memory(rows=1)
    seen = set()
    with ServiceTable.bind(kernel) as table:
        for host in range(1, 6):
            table.plan([service(80, host)]).apply()
            table.plan([]).apply()
            seen.add(kernel["kd_backends"][0].id)
    assert len(seen) == 5


NODE_PORT = Exposure("node_port", "192.0.2.11", 30080)
LOAD_BALANCER = Exposure("load_balancer", "203.0.113.1", 80)


def exposed(*hosts: int, local: tuple[int, ...] = (), **options: Any) -> Service:
    backends = [Backend(f"10.244.1.{host}", 8080, local=host in local) for host in hosts]
    return Service("10.96.0.10", 80, backends=backends, exposed=[NODE_PORT, LOAD_BALANCER], **options)


def frontend_of(exposure: Exposure) -> Frontend:
    return Frontend(exposure.address, exposure.port)


def test_all_frontends_of_a_service_lead_to_its_backends() -> None:
    kernel = memory()
    with ServiceTable.bind(kernel) as table:
        wanted = exposed(1, 2, name="default/web:http")
        table.upsert(wanted)
        for frontend in wanted.frontends:
            assert frontend in table
            assert table.get(frontend) == wanted
            assert answers(kernel, frontend) == set(wanted.backends)
        table.remove(frontend_of(NODE_PORT))
        assert not kernel["kd_frontends"]
        assert not any(frontend in table for frontend in wanted.frontends)


def test_local_frontends_have_a_set_of_their_own() -> None:
    kernel = memory()
    wanted = exposed(1, 2, 3, local=(2,), external_local=True)
    with ServiceTable.bind(kernel) as table:
        table.upsert(wanted)

        def hosts(frontend: Frontend, *, outside: bool) -> set[str]:
            return {str(backend.address) for backend in table.resolve(frontend, outside=outside).shares}

        everybody = {"10.244.1.1", "10.244.1.2", "10.244.1.3"}
        for exposure in (NODE_PORT, LOAD_BALANCER):
            assert hosts(frontend_of(exposure), outside=True) == {"10.244.1.2"}
            assert hosts(frontend_of(exposure), outside=False) == everybody
        assert hosts(wanted.frontend, outside=True) == everybody
    with ServiceTable.bind(kernel) as again:
        assert again.dump() == (wanted,)


def test_everything_about_a_service_is_taken_over() -> None:
    kernel = memory()
    wanted = exposed(
        1,
        2,
        local=(1,),
        internal_local=True,
        external_local=True,
        affinity_timeout=10800,
        source_ranges=["203.0.113.0/24", "198.51.100.7/32"],
    )
    with ServiceTable.bind(kernel) as table:
        table.upsert(wanted)
        assert len(kernel["kd_sources"]) == 2
    with ServiceTable.bind(kernel) as table:
        assert table.dump() == (wanted,)
        assert table.plan([wanted]).empty
        table.upsert(evolve(wanted, source_ranges=["198.51.100.7/32"]))
        assert len(kernel["kd_sources"]) == 1
        table.plan([]).apply()
        assert not kernel["kd_sources"]


def test_the_node_is_let_in_where_one_of_its_addresses_is() -> None:
    kernel = memory()
    near, far = ip_address("203.0.113.9"), ip_address("192.0.2.9")
    limited = exposed(1, source_ranges=["203.0.113.0/24"])
    node_key = "ff02::1/128"

    def said(table: ServiceTable) -> set[str]:
        assert table.dump() == (limited,)  # it is no range of the service
        assert table.verify() == ()
        return {str(key.network) for key in kernel["kd_sources"]}

    with ServiceTable.bind(kernel) as table:
        table.upsert(limited)
        assert node_key not in said(table)
        table.set_node_addresses([far, near])
        assert node_key in said(table)
        table.upsert(limited := evolve(limited, source_ranges=["203.0.113.0/25"]))
        assert said(table) == {"203.0.113.0/25", node_key}
    with ServiceTable.bind(kernel) as table:
        assert node_key in said(table)
        table.set_node_addresses([far])  # it has lost the other one while nobody looked
        assert node_key not in said(table)
        table.set_node_addresses([near])
        table.upsert(limited := evolve(limited, source_ranges=["198.51.100.0/24"]))
        assert said(table) == {"198.51.100.0/24"}
        table.set_node_addresses([ip_address("198.51.100.1")])
    with ServiceTable.bind(kernel) as table:
        table.plan([]).apply()
        assert not kernel["kd_sources"]


def test_an_address_that_moves_between_services_is_never_without_one() -> None:
    kernel = memory()
    one, other = service(80, 1), service(81, 2)
    balanced = [frontend_of(LOAD_BALANCER)]
    with ServiceTable.bind(kernel) as table:
        table.plan([evolve(one, exposed=[LOAD_BALANCER]), other]).apply()
        seen = []
        plan = table.plan([one, evolve(other, exposed=[LOAD_BALANCER])])
        watched(lambda: seen.append(frozenset(answers(kernel, balanced[0]))), plan.apply)
    assert set(seen) == {frozenset(one.backends), frozenset(other.backends)}


def shut(kernel: dict[str, Any]) -> dict[str, FrontendKind]:
    """Addresses whose other ports are nobody's, by their rows."""
    return {
        str(key.addr): FrontendKind(row.kind)
        for key, row in kernel["kd_frontends"].items()
        if row.service == NO_SERVICE and (key.port, key.protocol) == (0, 0)
    }


def test_an_address_is_shut_from_its_first_frontend_to_its_last() -> None:
    kernel = memory()
    balanced = Exposure("load_balancer", "203.0.113.1", 443)
    with ServiceTable.bind(kernel) as table:
        table.upsert(exposed(1))
        both = {"10.96.0.10": FrontendKind.CLUSTER_IP, "203.0.113.1": FrontendKind.LOAD_BALANCER}
        assert shut(kernel) == both  # and not 192.0.2.11, which has a node port
        table.upsert(service(81, 1, exposed=[balanced]))
        table.remove(frontend_of(LOAD_BALANCER))
        assert shut(kernel) == both
        table.remove(frontend_of(balanced))
        assert not kernel["kd_frontends"]


def test_cluster_ips_in_a_service_network_need_no_row() -> None:
    kernel = memory()
    with ServiceTable.bind(kernel) as table:
        table.upsert(exposed(1))
    with ServiceTable.bind(kernel, service_networks=[network("10.96.0.0/12")]) as table:
        table.upsert(service(81, 1))
        assert shut(kernel).keys() == {"203.0.113.1"}
    with ServiceTable.bind(kernel) as table:
        table.plan([exposed(1)]).apply()
        assert shut(kernel).keys() == {"10.96.0.10", "203.0.113.1"}


def test_an_address_of_the_node_is_never_shut_and_is_again_when_it_has_gone() -> None:
    kernel = memory()
    own = exposed(1).exposed[1].address
    with ServiceTable.bind(kernel) as table:
        table.upsert(exposed(1))
        seen = []
        watched(lambda: seen.append(len(shut(kernel))), lambda: table.set_node_addresses([own]))
        assert shut(kernel).keys() == {"10.96.0.10"}
        assert set(seen) == {1, 2}
        table.plan([]).apply()
        table.upsert(exposed(1))
        assert shut(kernel).keys() == {"10.96.0.10"}
        table.set_node_addresses([])
        assert shut(kernel).keys() == {"10.96.0.10", "203.0.113.1"}
    with ServiceTable.bind(kernel) as table:
        table.set_node_addresses([own])
        assert shut(kernel).keys() == {"10.96.0.10"}


def test_the_row_of_an_address_takes_room_that_is_asked_for_first() -> None:
    kernel = memory(frontends=5)
    with ServiceTable.bind(kernel) as table:
        table.upsert(exposed(1))  # three frontends, two addresses
        with pytest.raises(CapacityError, match="6 frontends needed, 5 fit"):
            table.upsert(service(81, 1))
        table.upsert(evolve(exposed(1), exposed=[NODE_PORT]), service(81, 1), service(82, 1))
        with pytest.raises(CapacityError, match="7 frontends needed, 5 fit"):
            table.upsert(exposed(1))


def test_rows_of_addresses_count_for_what_fits_one_by_one() -> None:
    kernel = memory(frontends=6)
    with ServiceTable.bind(kernel) as table:
        one = evolve(service(80, 1), exposed=[LOAD_BALANCER])  # two frontends, two addresses
        other = Service("10.96.0.11", 80)
        report = table.change([one, service(81, 1), other, service(82, 1)])
        assert list(report.refused) == [other.frontend]
        assert len(kernel["kd_frontends"]) == 6
        report = table.change([other], [service(81).frontend, service(82).frontend])
        assert not report.refused
        assert len(kernel["kd_frontends"]) == 6


def watched(look: Callable[[], object], action: Callable[[], object]) -> None:
    """Run ``action``, looking at every line of the library's writing code."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in WRITING:
            return None
        sys.settrace(None)
        look()
        sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)


def test_a_frontend_of_another_service_is_refused() -> None:
    with ServiceTable.bind(memory()) as table:
        table.upsert(exposed(1))
        thief = Service("10.96.0.99", 80, exposed=[LOAD_BALANCER])
        with pytest.raises(ModelError, match=r"203\.0\.113\.1:80/TCP is claimed by two"):
            table.upsert(thief)
        with pytest.raises(ModelError, match="claimed by two"):
            table.plan([exposed(1), thief])
        table.plan([thief]).apply()
        assert table.dump() == (thief,)


def test_an_address_goes_from_a_service_that_ends_to_one_that_stays_in_one_step() -> None:
    kernel = memory()
    ending, staying = service(80, 1), service(81, 2)
    place = frontend_of(LOAD_BALANCER)
    with ServiceTable.bind(kernel) as table:
        table.change([evolve(ending, exposed=[LOAD_BALANCER]), staying])
        seen = []
        watched(
            lambda: seen.append(frozenset(answers(kernel, place))),
            lambda: table.change([evolve(staying, exposed=[LOAD_BALANCER])], [ending.frontend]),
        )
        assert set(seen) == {frozenset(ending.backends), frozenset(staying.backends)}
        assert table.dump() == (evolve(staying, exposed=[LOAD_BALANCER]),)
        assert place in table
        assert ending.frontend not in table


def test_what_does_not_fit_is_left_as_it_is_and_the_rest_is_done() -> None:
    kernel = memory(rows=5)
    wanted = [service(80, 1, 2), service(81, 3, 4), service(82, 5, 6)]
    with ServiceTable.bind(kernel) as table:
        report = table.change(wanted)
        assert set(table.dump()) == set(wanted[:2])
        [(frontend, error)] = report.refused.items()
        assert frontend == wanted[2].frontend
        assert isinstance(error, CapacityError)
        assert (error.resource, error.needed, error.capacity) == ("new backends", 2, 1)
        assert "10.96.0.10:82" in str(error)
        assert str(report).startswith("2 added, 0 changed, 0 removed, 1 refused")
        assert table.change(removed=[wanted[0].frontend]).removed == 1
        assert not table.change([wanted[2]]).refused
        assert set(table.dump()) == set(wanted[1:])


def test_room_that_a_change_makes_is_used_by_the_same_change() -> None:
    with ServiceTable.bind(memory(rows=4, frontends=3)) as table:
        table.change([service(80, 1, 2, 3), service(81, 4)])
        report = table.change([service(80, 1), service(82, 5, 6)], [service(81).frontend])
        assert (report.added, report.changed, report.removed) == (1, 1, 1)
        assert not report.refused
        assert set(table.dump()) == {service(80, 1), service(82, 5, 6)}


def test_slots_that_are_not_in_one_run_refuse_only_who_needs_them() -> None:
    kernel = memory(slots=2)  # two blocks of 16
    with ServiceTable.bind(kernel) as table:
        table.change([service(port, 1, 2, 3, 4) for port in range(80, 88)])
        runs = {
            kernel["kd_sets"][3 * row.service].offset: key
            for key, row in kernel["kd_frontends"].items()
            if key.port
        }
        table.change(removed=[Frontend(runs[offset].addr, runs[offset].port) for offset in (4, 8, 20, 24)])
        report = table.change([service(90, *range(1, 9)), service(91, 1, 2)])
        assert set(report.refused) == {service(90).frontend}
        assert service(91).frontend in table


def test_a_change_that_wants_what_another_service_keeps_is_left_out() -> None:
    with ServiceTable.bind(memory()) as table:
        table.change([exposed(1)])
        thief, innocent = Service("10.96.0.99", 80, exposed=[LOAD_BALANCER]), service(82, 3)
        report = table.change([thief, innocent])
        assert list(report.refused) == [thief.frontend]
        assert isinstance(report.refused[thief.frontend], ModelError)
        assert set(table.dump()) == {exposed(1), innocent}


def test_a_frontend_is_removed_only_if_it_is_the_main_one() -> None:
    with ServiceTable.bind(memory()) as table:
        table.change([exposed(1)])
        assert table.change(removed=[frontend_of(LOAD_BALANCER)]).removed == 0
        assert table.dump() == (exposed(1),)


def test_a_change_killed_at_any_line_leaves_old_or_new() -> None:
    old = [exposed(1, 2), service(81, 3), service(82, 4)]
    new = [service(81, 3, 5), evolve(service(83, 6), exposed=[NODE_PORT, LOAD_BALANCER]), service(82, 4)]
    fronts = {f: (find(old, f), find(new, f)) for s in (*old, *new) for f in s.frontends}
    line, died = 0, True
    while died:
        line += 3  # the same code as above
        kernel = memory()
        with ServiceTable.bind(kernel) as table:
            table.change(old)
            died = killed_at(line, lambda: table.change(new, [exposed().frontend]))
        for frontend, (before, after) in fronts.items():
            assert answers(kernel, frontend) in (before, after), f"line {line}: {frontend}"
        with ServiceTable.bind(kernel) as table:
            table.change(new, {s.frontend for s in table.dump()} - {s.frontend for s in new})
            assert set(table.dump()) == set(new)
    assert line > 100


WRITING = {
    module.__file__ for module in (service_table, service_maps, service_addresses, sets, backends, grace)
}


class Killed(BaseException):
    """Stands for kill -9: no line runs after it, not even in a finally."""


def killed_at(line: int, action: Callable[[], object]) -> bool:
    """Run ``action``, but stop dead before the ``line``-th line of the library's writing code."""
    left = line

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in WRITING:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


def test_killed_at_any_line_the_kernel_answers_old_or_new_and_a_restart_ends_as_desired() -> None:
    there, elsewhere = Exposure("external_ip", "203.0.113.6", 80), Exposure("external_ip", "203.0.113.7", 80)
    old = [
        exposed(1, 2, source_ranges=["203.0.113.0/24"]),
        service(81, 3, exposed=[there]),
        service(82, 4),
    ]
    new = [exposed(2, 5), service(82, 4, selection="maglev"), service(83, 6, 7, exposed=[elsewhere])]
    fronts = {f: (find(old, f), find(new, f)) for s in (*old, *new) for f in s.frontends}
    line, died = 0, True
    while died:
        line += 1
        kernel = memory(frontends=10, rows=12, slots=40)
        with ServiceTable.bind(kernel) as table:
            table.plan(old).apply()
            plan = table.plan(new)
            died = killed_at(line, plan.apply)
        for frontend, (before, after) in fronts.items():
            assert answers(kernel, frontend) in (before, after), f"line {line}: {frontend}"
        dialled = {str(key.addr) for key in kernel["kd_frontends"] if key.port}
        assert shut(kernel).keys() <= dialled, f"line {line}: an address is shut that no service is at"
        assert shut(kernel)["10.96.0.10"] == FrontendKind.CLUSTER_IP, f"line {line}"
        with ServiceTable.bind(kernel) as table:
            table.plan(new).apply()
            assert set(table.dump()) == set(new)
        assert shut(kernel) == {
            "10.96.0.10": FrontendKind.CLUSTER_IP,
            "203.0.113.1": FrontendKind.LOAD_BALANCER,
            "203.0.113.7": FrontendKind.EXTERNAL_IP,
        }
        assert rows_in_use(kernel) == sum(len(s.backends) for s in new), f"line {line}"
    assert line > 100  # it did stop at many places


def find(services: list[Service], frontend: Frontend) -> set[Backend]:
    return next((set(s.backends) for s in services if frontend in s.frontends), set())


class Tables(RuleBasedStateMachine):
    """Random changes and restarts against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = memory(slots=256)
        self.table = ServiceTable.bind(self.kernel)
        self.model: dict[Frontend, Service] = {}

    services = st.builds(
        lambda port, hosts, selection: service(port, *hosts, selection=selection),
        st.integers(1, 6),
        st.sets(st.integers(1, 9), max_size=4),
        st.sampled_from(Selection),
    )

    @rule(wanted=st.lists(services, max_size=4, unique_by=lambda s: s.port))
    def plan(self, wanted: list[Service]) -> None:
        self.table.plan(wanted).apply()
        self.model = {s.frontend: s for s in wanted}

    @rule(wanted=st.lists(services, max_size=2, unique_by=lambda s: s.port))
    def upsert(self, wanted: list[Service]) -> None:
        self.table.upsert(*wanted)
        self.model |= {s.frontend: s for s in wanted}

    @rule(port=st.integers(1, 6))
    def remove(self, port: int) -> None:
        frontend = Frontend("10.96.0.10", port)
        self.table.remove(frontend)
        self.model.pop(frontend, None)

    @rule(wanted=st.lists(services, max_size=3, unique_by=lambda s: s.port), ports=st.sets(st.integers(1, 6)))
    def change(self, wanted: list[Service], ports: set[int]) -> None:
        gone = [Frontend("10.96.0.10", port) for port in sorted(ports)]
        assert not self.table.change(wanted, gone).refused
        for frontend in gone:
            self.model.pop(frontend, None)
        self.model |= {s.frontend: s for s in wanted}

    @rule()
    def restart(self) -> None:
        self.table.close()
        self.table = ServiceTable.bind(self.kernel)

    @invariant()
    def kernel_and_table_are_as_the_model(self) -> None:
        assert set(self.table.dump()) == set(self.model.values())
        for port in range(1, 7):
            frontend = Frontend("10.96.0.10", port)
            wanted = self.model.get(frontend)
            assert answers(self.kernel, frontend) == (set(wanted.backends) if wanted else set())
            if wanted:
                assert set(self.table.resolve(frontend).shares) == set(wanted.backends)

    def teardown(self) -> None:
        self.table.close()


TestTables = Tables.TestCase
TestTables.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_the_oracle_reads_what_the_layout_says() -> None:
    assert layout_of(BackendRow).size == 32
    assert maps.Array[BackendRow].value_type is BackendRow


def test_a_plan_says_what_else_changes_of_a_service() -> None:
    with ServiceTable.bind(memory()) as table:
        table.upsert(evolve(exposed(1), source_ranges=["192.0.2.0/24"]))
        wanted = evolve(
            exposed(1),
            exposed=[LOAD_BALANCER],
            source_ranges=["203.0.113.0/24"],
            external_local=True,
            affinity_timeout=60,
        )
        (line, _) = str(table.plan([wanted])).splitlines()
    assert line.partition(": ")[2].split(", ") == [
        "+source_ranges 203.0.113.0/24",
        f"-exposed {NODE_PORT}",
        "-source_ranges 192.0.2.0/24",
        "affinity_timeout 0 -> 60",
        "external_local False -> True",
    ]


def test_what_is_neither_service_nor_frontend_is_refused() -> None:
    one = service(80, 1)
    with ServiceTable.bind(memory()) as table:
        table.upsert(one)
        for wrong, said in (
            (one, r"is not a Frontend: give its \.frontend"),
            (str(one.frontend), "is not a Frontend"),
        ):
            with pytest.raises(ModelError, match=said):
                table.remove(wrong)  # type: ignore[arg-type]
            with pytest.raises(ModelError, match=said):
                table.change([], [wrong])  # type: ignore[list-item]
            for find in (table.get, table.flows, table.resolve):
                with pytest.raises(ModelError, match=said):
                    find(wrong)  # type: ignore[operator]
        with pytest.raises(ModelError, match="is not a Service"):
            table.upsert([one])  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="is not a Service"):
            table.plan("10.96.0.10")  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="is a single one"):
            table.plan(one)  # type: ignore[arg-type]
        assert table.dump() == (one,)


def test_the_order_of_slots_follows_the_backends_and_not_their_numbers_in_the_kernel() -> None:
    weights = (1, 3, 2)
    service = Service(
        "10.96.0.10",
        80,
        backends=[Backend(f"10.244.1.{1 + place}", 80, weight=w) for place, w in enumerate(weights)],
        selection="round_robin",
    )
    found = [[ids.index(id) for id in slots(service, ids, Scope.CLUSTER)] for ids in permutations((7, 8, 9))]
    assert found == [[1, 2, 0, 1, 2, 1]] * 6
