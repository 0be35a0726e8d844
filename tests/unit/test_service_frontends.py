"""ServiceTable: all the addresses of a service, and what of them is nobody's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from attrs import evolve

from k8sdatapath.datapath.service_table import ServiceTable
from k8sdatapath.errors import (
    CapacityError,
    ModelError,
)
from k8sdatapath.model import (
    Exposure,
    Frontend,
    FrontendKind,
    Service,
    network,
)
from tests.support.service_maps import (
    LOAD_BALANCER,
    NODE_PORT,
    answers,
    exposed,
    frontend_of,
    memory,
    service,
    shut,
    watched,
)


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


def test_a_frontend_is_removed_only_if_it_is_the_main_one() -> None:
    with ServiceTable.bind(memory()) as table:
        table.change([exposed(1)])
        assert table.change(removed=[frontend_of(LOAD_BALANCER)]).removed == 0
        assert table.dump() == (exposed(1),)
