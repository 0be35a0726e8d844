"""Name servers over TCP: what pods may ask for, between real sockets, and what they learn from answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dnslib import QTYPE, RCODE, RR, TXT, DNSRecord

from k8sdatapath import Accelerated, Lab
from k8sdatapath.lab.lab import Pod
from k8sdatapath.net.netns import NetNs
from k8sdatapath.net.packet import parse, tcp
from k8sdatapath.node.devices import mac_of
from tests.lab.test_dns import FAMILIES, KINDS, eventually, learned
from tests.lab.test_dns_rules import RULES
from tests.lab.test_policy import denied, reaches
from tests.support.acceleration import choose
from tests.support.connections import dial, listen, read
from tests.support.name_server import NameServer, framed, messages, question, reply

pytestmark = pytest.mark.lab

_OVER = ("0A", "06", "08")
"""States of sockets that listen, that wait for stray segments, and that only their program has not closed."""


class Shop:
    """A pod that may ask for some names, and goes by name, and a name server."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.web = lab.pod("web", labels={"app": "web"}, namespace="shop")
        self.names = lab.pod("names", labels={"app": "names"}, namespace="shop")
        self.banks = [lab.external(f"bank{number}") for number in range(3)]
        for bank in self.banks:
            bank.serve_http(8080, "money")
        lab.apply(RULES)

    @contextmanager
    def connection(self, family: int) -> Iterator[socket.socket]:
        with self.web.tcp(self.names.addresses[family == 6], 53) as made:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield made


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """One whose sockets hand over all that nobody reads."""
    with Lab.start(policy=True, dns=True, flows="all", accelerate=True) as lab:
        choose(lab.node, Accelerated("0.0.0.0/0"), Accelerated("::/0"))
        yield Shop(lab)


def answers(stream: socket.socket, number: int) -> list[DNSRecord]:
    """The next messages of a connection."""
    found = messages(stream)
    return [DNSRecord.parse(next(found)) for _ in range(number)]


@FAMILIES
def test_in_as_many_writes_as_it_pleases(shop: Shop, family: int) -> None:
    bank = shop.banks[0].addresses[family == 6]
    with NameServer(shop.names.netns, {"bank.example": [str(bank)]}), shop.connection(family) as client:
        for _ in range(2):
            asked = framed(question("bank.example", KINDS[family]))
            for piece in (asked[:2], asked[2:9], asked[9:]):
                client.send(piece)
        assert [str(each.rr[0].rdata) for each in answers(client, 2)] == [str(bank)] * 2


@FAMILIES
def test_many_at_once(shop: Shop, family: int) -> None:
    asked = b"".join(framed(question("bank.example", KINDS[family], ident=each)) for each in range(60))
    with NameServer(shop.names.netns, {}), shop.connection(family) as client:
        client.sendall(asked)
        assert [each.header.id for each in answers(client, 60)] == [*range(60)]


@FAMILIES
def test_a_refusal_ends_the_connection_on_both_sides(shop: Shop, family: int) -> None:
    with NameServer(shop.names.netns, {}) as server, shop.connection(family) as client:
        client.send(framed(question("bank.example")))
        answers(client, 1)
        client.send(framed(question("evil.example", ident=99))[:30])
        client.send(framed(question("evil.example", ident=99))[30:])
        (answer,) = answers(client, 1)
        assert (answer.header.id, answer.header.rcode) == (99, RCODE.REFUSED)
        assert str(answer.q.qname) == "evil.example."
        assert client.recv(1) == b""
        eventually(lambda: not established(shop.names.netns))
    assert [DNSRecord.parse(each).q.qname for each in server.asked] == ["bank.example."]
    eventually(lambda: not established(shop.web.netns))


def established(netns: NetNs) -> list[str]:
    """The states of connections to or from port 53 that there are in a namespace."""
    tables = [Path(f"/proc/thread-self/net/{name}") for name in ("tcp", "tcp6")]
    text = "".join(netns.call(each.read_text) for each in tables)
    rows = [line.split() for line in text.splitlines() if "local_address" not in line]
    return [row[3] for row in rows if ":0035" in row[1] + row[2] and row[3] not in _OVER]


@FAMILIES
def test_who_says_something_else_is_reset(shop: Shop, family: int) -> None:
    with NameServer(shop.names.netns, {}), shop.connection(family) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@FAMILIES
def test_a_truncated_answer_is_asked_for_over_tcp(shop: Shop, family: int) -> None:
    bank = shop.banks[1].addresses[family == 6]
    name, server = f"more{family}.shop.example", str(shop.names.addresses[family == 6])
    assert denied(shop.web, bank, 8080)
    with NameServer(shop.names.netns, {name: [str(bank)]}) as names:
        names.truncates = True
        dig = ["dig", f"@{server}", name, KINDS[family], "+short", "+tries=1", "+time=5"]
        process = shop.web.popen(dig, stdout=-1, text=True)
        said, _ = process.communicate(timeout=30)
        assert said.split()[-1] == str(bank)
        assert len(names.asked) == 1
    eventually(lambda: learned(shop, bank))
    assert reaches(shop.web, bank, 8080)


@FAMILIES
def test_a_large_answer_is_learned_from(shop: Shop, family: int) -> None:
    bank = shop.banks[2].addresses[family == 6]
    name = f"large{family}.shop.example"

    def large(asked: bytes) -> list[bytes]:
        made = DNSRecord.parse(reply(asked, {name: [str(bank)]}))
        for _ in range(150):
            made.add_ar(RR(name, QTYPE.TXT, rdata=TXT("x" * 250)))
        return [bytes(made.pack())]

    with NameServer(shop.names.netns, {}) as server, shop.connection(family) as client:
        server.answer = large
        client.send(framed(question(name, KINDS[family])))
        (answer,) = answers(client, 1)
        assert len(answer.pack()) > 30_000
    eventually(lambda: learned(shop, bank))
    assert reaches(shop.web, bank, 8080)


def test_a_connection_that_is_older_than_the_rules(shop: Shop) -> None:
    opened = RULES.replace("      rules: {dns", "#")
    with NameServer(shop.names.netns, {}), shop.connection(4) as client:
        shop.lab.apply(opened)
        with shop.connection(4) as older:
            older.send(framed(question("evil.example")))
            assert answers(older, 1)[0].header.rcode == RCODE.NXDOMAIN
            shop.lab.apply(RULES)
            older.send(framed(question("bank.example")))
            with pytest.raises(ConnectionResetError):
                older.recv(1)
        client.send(framed(question("bank.example")))
        assert answers(client, 1)[0].header.rcode == RCODE.NXDOMAIN


@FAMILIES
def test_what_is_held_to_names_is_never_handed_over(shop: Shop, family: int) -> None:
    asked, server = framed(question("bank.example")), shop.names.addresses[family == 6]
    with listen(shop.names, 53) as listener, dial(shop.web, listener, server) as made:
        made.client.sendall(asked)
        assert read(made.server, len(asked)) == asked
        assert not list(shop.lab.node.accelerator.pairs())


class ByHand:
    """A connection of a pod whose kernel knows nothing of it, to a server that goes by SYN cookies."""

    def __init__(self, client: Pod, server: Pod, port: int) -> None:
        self.wire = client.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self.wire.bind(("eth0", 0x0800))
        self.wire.settimeout(10)
        self.macs = {"src_mac": client.mac, "dst_mac": client.node.netns.call(mac_of, client.device)}
        self.ends = client.address, server.address, port, 53
        self.cookie = 0
        self.send("S", -1, own_options=bytes.fromhex("020405b4"))  # 1,460 bytes: the largest of four sizes
        while not self.cookie:
            frame = self.wire.recv(2000)
            told = parse(frame)
            if (told.sport, told.dport, told.flags) == (53, port, "SA"):
                self.cookie = int.from_bytes(frame[38:42]) + 1

    def send(self, flags: str, at: int, data: bytes = b"", **how: Any) -> None:
        """A segment whose first byte is at a position of the pod's."""
        self.wire.send(tcp(*self.ends, flags, data, seq=0x10000000 + at, ack=self.cookie, **how, **self.macs))


@pytest.mark.parametrize("flags", ["A", "PA"])
def test_a_server_with_syn_cookies_begins_where_it_was_agreed(shop: Shop, flags: str) -> None:
    """It knows of no agreement, and takes what answers for the beginning if it is up to three bytes late."""
    client = next((each for each in shop.lab.node.pods if each.name == "unknown"), None)
    if client is None:
        client = shop.lab.pod("unknown", labels={"app": "web"}, namespace="shop")
        client.exec(["ip", "-4", "addr", "flush", "dev", "eth0"], check=True)
    shop.names.exec(["sysctl", "-qw", "net.ipv4.tcp_syncookies=2"], check=True)
    good = framed(question("bank.example"))
    with shop.names.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(shop.names.address), 53))
        listening.listen()
        for late in 1, 2, 3:
            opened = ByHand(client, shop.names, 40000 + 10 * len(flags) + late)
            with opened.wire:
                if flags == "PA":  # what was read does not arrive
                    opened.send(flags, 0, good, checksum=0xBAD)
                opened.send(flags, late, good[late:] if flags == "PA" else b"")
                opened.send("PA", 0, good)
                accepted, _ = listening.accept()
                with accepted:
                    accepted.settimeout(10)
                    assert accepted.recv(4096) == good
