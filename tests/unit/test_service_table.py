"""ServiceTable over maps in memory: plans, idempotence, takeover, room."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from attrs import evolve

from k8sdatapath.datapath.service_rows import slots
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import (
    CapacityError,
    ClosedError,
    ContractError,
    KeyNotFoundError,
    ModelError,
    ServiceNotFoundError,
    StalePlanError,
)
from k8sdatapath.model import (
    Backend,
    BackendState,
    Frontend,
    Scope,
    Selection,
    Service,
)
from k8sdatapath.tables import sets
from k8sdatapath.tables.frontends import FrontendKey, FrontendRow
from tests.support.service_maps import (
    LOAD_BALANCER,
    NODE_PORT,
    answers,
    exposed,
    memory,
    rows_in_use,
    service,
)


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
