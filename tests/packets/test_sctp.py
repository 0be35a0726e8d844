"""SCTP through services: its addresses are exchanged, its ports and with them its checksum stay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8sdatapath import maps
from k8sdatapath.errors import ModelError
from k8sdatapath.model import Backend, BackendState, Exposure, FrontendKind, Protocol, Service
from k8sdatapath.net.packet import ICMP, ICMPV6, crc32c, icmp_error, parse, quoted, sctp
from k8sdatapath.tables.backends import BackendRow
from tests.packets.rig import Rig, rig
from tests.packets.world import TCP, UDP, V4, WORLDS, World

PORT = 3868
DATA, INIT, INIT_ACK, ABORT, SHUTDOWN_COMPLETE = 0, 1, 2, 6, 14
FAMILIES = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


@pytest.fixture
def datapath() -> Iterator[Rig]:
    with rig(redirect=False) as made:
        yield made


def service(world: World, *names: str, state: BackendState = BackendState.ACTIVE, **more: object) -> Service:
    backends = [Backend(world.address(name), PORT, state=state) for name in names]
    return Service(world.address("service"), PORT, "SCTP", backends=backends, **more)  # type: ignore[arg-type]


def frame(world: World, src: str, dst: str, chunk: int, payload: bytes = b"hello...") -> bytes:
    """From a client's port 40000 to the service's, or back."""
    ports = (40000, PORT) if src in ("client", "uplink") else (PORT, 40000)
    return sctp(world.address(src), world.address(dst), *ports, chunk, payload, tag=7)


def leads_to(datapath: Rig, before: bytes, src: str, dst: str) -> None:
    sent = datapath.send(before)
    after, whole = sent.packet, parse(before)
    assert (sent.outcome, str(after.src), str(after.dst)) == ("TO_STACK", src, dst)
    assert (after.sport, after.dport, after.payload) == (whole.sport, whole.dport, whole.payload)
    assert after.checksum == whole.checksum
    assert after.checksums_ok


def test_the_checksum_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


@FAMILIES
def test_an_association_reaches_its_backend_and_back(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world, "one"))
    client, vip, one = (world.address(name) for name in ("client", "service", "one"))
    for ask, answer in ((INIT, INIT_ACK), (10, 11), (DATA, 3)):
        leads_to(datapath, frame(world, "client", "service", ask), client, one)
        leads_to(datapath, frame(world, "one", "client", answer), vip, client)
    assert len(datapath.flows) == 2


@FAMILIES
def test_it_stays_until_it_is_over_then_begins_anew(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world, "one"))
    client, one, two = (world.address(name) for name in ("client", "one", "two"))
    leads_to(datapath, frame(world, "client", "service", INIT), client, one)
    datapath.services.upsert(service(world, "two"))
    leads_to(datapath, frame(world, "client", "service", DATA), client, one)
    for end in (SHUTDOWN_COMPLETE, ABORT):
        leads_to(datapath, frame(world, "client", "service", end), client, one)
        leads_to(datapath, frame(world, "client", "service", INIT), client, two)
        one, two = two, one
        datapath.services.upsert(service(world, "one"))


@FAMILIES
def test_an_init_to_an_address_that_has_moved_begins_anew_at_once(datapath: Rig, world: World) -> None:
    """Also when another packet of the old association came in the same second."""
    where = Exposure(FrontendKind.LOAD_BALANCER, world.address("balancer"), PORT)
    other = Service(
        world.address("other"), PORT, "SCTP", backends=[Backend(world.address("two"), PORT)], exposed=[where]
    )
    client, one, two = (world.address(name) for name in ("client", "one", "two"))
    datapath.services.upsert(service(world, "one", exposed=[where]))
    leads_to(datapath, frame(world, "client", "balancer", INIT), client, one)
    datapath.services.plan([service(world, "one"), other]).apply()
    leads_to(datapath, frame(world, "client", "balancer", DATA), client, one)
    leads_to(datapath, frame(world, "client", "balancer", INIT), client, two)


@pytest.mark.parametrize("chunk", [ABORT, SHUTDOWN_COMPLETE, INIT_ACK])
def test_what_ends_or_answers_begins_nothing(datapath: Rig, chunk: int) -> None:
    datapath.services.upsert(service(V4, "one"))
    assert datapath.send(frame(V4, "client", "service", chunk)).outcome == "DROP_NO_FLOW"
    assert not dict(datapath.flows)


@FAMILIES
def test_a_pod_that_meets_itself_keeps_its_port(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world, "client"))
    client, vip = world.address("client"), world.address("service")
    leads_to(datapath, frame(world, "client", "service", INIT), vip, client)
    leads_to(datapath, sctp(client, vip, PORT, 40000, INIT_ACK), vip, client)


@FAMILIES
def test_no_endpoint_is_told_at_once(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world))
    sent = datapath.send(frame(world, "client", "service", INIT))
    assert sent.outcome == "REJECT_NO_BACKEND"
    assert sent.packet.icmp == ((3, 3) if world is V4 else (1, 4))
    assert sent.packet.checksums_ok


@FAMILIES
def test_errors_come_from_the_service(datapath: Rig, world: World) -> None:
    datapath.services.upsert(service(world, "one"))
    after = datapath.send(frame(world, "client", "service", INIT)).frame
    kind = (3, 4) if world is V4 else (2, 0)
    back = datapath.send(icmp_error(world.address("one"), world.address("client"), after, kind, 1400)).packet
    assert back.protocol == (ICMP if world is V4 else ICMPV6)
    assert str(back.src) == world.address("service")
    about = quoted(back)
    assert (str(about.src), str(about.dst), about.dport) == (
        world.address("client"),
        world.address("service"),
        PORT,
    )
    assert back.checksums_ok


def test_protocols_with_one_number_are_told_apart(datapath: Rig) -> None:
    datapath.services.upsert(
        Service(*V4["service"], TCP, backends=[Backend(*V4["one"])]),
        Service(*V4["service"], UDP, backends=[Backend(*V4["two"])]),
        Service(*V4["service"], "SCTP", backends=[Backend("10.244.1.9", 80)]),
    )
    reached = [str(datapath.send(V4.frame("client", "service", each)).packet.dst) for each in (TCP, UDP)]
    client, vip = V4.address("client"), V4.address("service")
    reached.append(str(datapath.send(sctp(client, vip, 40000, 80)).packet.dst))
    assert reached == [V4.address("one"), V4.address("two"), "10.244.1.9"]


def test_a_packet_without_a_chunk_is_none(datapath: Rig) -> None:
    whole = frame(V4, "client", "service", INIT, b"")
    short = whole[:16] + (20 + 12).to_bytes(2) + whole[18:-4]
    assert datapath.send(short).outcome == "DROP_MALFORMED"


def test_a_service_on_another_port_cannot_be_said() -> None:
    with pytest.raises(ModelError, match=r"10.96.0.10:3868/SCTP cannot lead to 10.244.1.3:8080: SCTP keeps"):
        Service("10.96.0.10", PORT, "SCTP", backends=[Backend("10.244.1.3", 8080)])
    with pytest.raises(ModelError, match="30080/SCTP cannot lead to"):
        service(V4, "one", exposed=[Exposure(FrontendKind.NODE_PORT, "192.0.2.11", 30080)])


def test_and_if_somebody_writes_one_it_is_dropped_with_its_reason(datapath: Rig) -> None:
    datapath.services.upsert(service(V4, "one"))
    rows = datapath.loaded.map("kd_backends", maps.Array[BackendRow])
    index, row = next((index, row) for index, row in enumerate(rows) if row.state)
    rows[index] = BackendRow(row.addr, 0, row.id, PORT + 1, Protocol.SCTP, row.status)
    assert datapath.send(frame(V4, "client", "service", INIT)).outcome == "DROP_SCTP_PORT"


@FAMILIES
def test_a_flow_that_only_another_port_could_tell_apart_is_dropped(datapath: Rig, world: World) -> None:
    other = Service(world.address("other"), PORT, "SCTP", backends=[Backend(world.address("one"), PORT)])
    datapath.services.upsert(service(world, "one"), other)
    assert datapath.send(frame(world, "client", "service", INIT)).outcome == "TO_STACK"
    assert datapath.send(frame(world, "client", "other", INIT)).outcome == "DROP_NO_PORT"
