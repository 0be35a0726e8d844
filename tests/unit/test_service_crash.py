"""ServiceTable: killed at every line, and random changes and restarts, against what ought to be."""

from __future__ import annotations

import random

from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from k8sdatapath import maps
from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.layout import layout_of
from k8sdatapath.model import (
    Backend,
    BackendState,
    Exposure,
    Frontend,
    FrontendKind,
    Selection,
    Service,
)
from k8sdatapath.tables.backends import BackendRow
from tests.support.service_maps import (
    LOAD_BALANCER,
    NODE_PORT,
    answers,
    exposed,
    find,
    killed_at,
    memory,
    rows_in_use,
    service,
    shut,
)


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


TestTables.settings = settings(max_examples=40, stateful_step_count=25)


def test_the_oracle_reads_what_the_layout_says() -> None:
    assert layout_of(BackendRow).size == 32
    assert maps.Array[BackendRow].value_type is BackendRow
