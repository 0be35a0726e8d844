"""Services change without pause under constant traffic: nothing fails that need not, and nothing is left.

What may fail: a new connection while its service has no candidate. What may not: any other; a connection that
is open, for as long as its pod lives, whatever becomes of the service; a flow that is led to a pod which was
no candidate when it began. That is what users of kube-proxy are used to.

``KD_CHURN_SECONDS`` says for how long; the default is for every day.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from attrs import define, evolve, field, frozen

from k8sdatapath.datapath.flow import Timeouts
from k8sdatapath.lab import Host, Lab
from k8sdatapath.model import Backend, BackendState, Exposure, Frontend, Protocol, Service
from k8sdatapath.model.service import Selection
from k8sdatapath.node import Capacity, Node, NodeConfig
from k8sdatapath.pins import PinDir
from k8sdatapath.pybpf.fd import Fd

SECONDS = float(os.environ.get("KD_CHURN_SECONDS", "20"))
SEED = int(os.environ.get("KD_CHURN_SEED", "1"))
CAPACITY = Capacity(services=256, backends=1024, slots=65536, flows=32768, pods=64)
HTTP, UDP = 8080, 5353


@frozen
class State:
    """What a service was, from the first moment on that it may have been so to the last."""

    since: float
    candidates: frozenset[str]
    members: frozenset[str]


@define
class History:
    """What a service was, when. A change counts from before it is made; what was before until it is done."""

    states: list[State] = field(factory=lambda: [State(0.0, frozenset(), frozenset())])
    done: list[float] = field(factory=lambda: [0.0])

    def during(self, began: float, ended: float) -> list[State]:
        """All that it may have been at some moment of a time."""
        first = max(bisect_right(self.done, began) - 1, 0)
        return [state for state in self.states[first:] if state.since <= ended]


@frozen
class Request:
    """One request, and who answered; or what went wrong."""

    what: str
    service: Frontend
    began: float
    ended: float
    pod: str
    error: str = ""


class Churn:
    """The services of a node, and what they were."""

    def __init__(self, node: Node, pods: dict[str, Host], services: list[Service], seed: int) -> None:
        self.node = node
        self.pods = pods
        self.steady = {service.frontend for service in services[:-1]}
        self.wanted: dict[Frontend, Service | None] = dict.fromkeys(service.frontend for service in services)
        self.blank = {service.frontend: service for service in services}
        self.histories = {service.frontend: History() for service in services}
        self.chance = random.Random(seed)
        self.changes = 0
        for frontend in self.blank:
            self.change(frontend, self.with_pods(frontend, sorted(pods)[:3]))

    def with_pods(self, frontend: Frontend, names: list[str]) -> Service:
        port = UDP if frontend.protocol is Protocol.UDP else HTTP
        family = frontend.address.version
        return evolve(self.blank[frontend], backends=[self.pods[name].at(port, family) for name in names])

    def name(self, backend: Backend) -> str:
        return next(name for name, pod in self.pods.items() if backend.address in pod.addresses)

    def change(self, frontend: Frontend, after: Service | None) -> None:
        history = self.histories[frontend]
        backends = after.backends if after is not None else ()
        candidates = after.candidates if after is not None else ()
        state = State(
            time.monotonic(), frozenset(map(self.name, candidates)), frozenset(map(self.name, backends))
        )
        history.states.append(state)
        if after is None:
            self.node.services.remove(frontend)
        else:
            self.node.services.upsert(after)
        history.done.append(time.monotonic())
        self.wanted[frontend] = after
        self.changes += 1

    def step(self) -> None:
        """One change by chance: endpoints come, drain and go; services go and come back."""
        frontend = self.chance.choice(list(self.wanted))
        now = self.wanted[frontend]
        if now is None:
            return self.change(frontend, self.with_pods(frontend, self.some(1)))
        match self.chance.randrange(8):
            case 0 | 1:
                return self.change(frontend, self.with_pods(frontend, self.some(1)))
            case 2:
                port, family = now.backends[0].port if now.backends else HTTP, frontend.address.version
                more = {self.pods[name].at(port, family) for name in self.some(1)}
                known = {(backend.address, backend.port) for backend in now.backends}
                fresh = [backend for backend in more if (backend.address, backend.port) not in known]
                return self.change(frontend, evolve(now, backends=[*now.backends, *fresh]))
            case 3 | 4 if now.backends:
                leaving = self.chance.choice(now.backends)
                gone = [b for b in now.backends if b is not leaving]
                return self.change(
                    frontend,
                    evolve(now, backends=[*gone, evolve(leaving, state=BackendState.TERMINATING)]),
                )
            case 5 if len(now.backends) > 1:
                active = [b for b in now.backends if b.state is BackendState.ACTIVE]
                return self.change(frontend, evolve(now, backends=active or now.backends[1:]))
            case 6:
                other = Selection.RANDOM if now.selection is Selection.MAGLEV else Selection.MAGLEV
                return self.change(frontend, evolve(now, selection=other))
            case 7 if frontend not in self.steady:
                empty = self.chance.random() < 0.5
                return self.change(frontend, evolve(now, backends=[]) if empty else None)
        return self.change(frontend, self.with_pods(frontend, self.some(2)))

    def some(self, least: int) -> list[str]:
        return self.chance.sample(sorted(self.pods), self.chance.randint(least, 4))


class Traffic:
    """Clients, each in a thread of its own, until it is over."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.broken: list[str] = []
        self.asked = 0
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self, run: Callable[..., None], *args: object) -> None:
        self.threads.append(threading.Thread(target=run, args=args))
        self.threads[-1].start()

    def short(self, what: str, dial: Callable[[], str], service: Service) -> None:
        """A new socket for each request."""
        while not self.over.is_set():
            began, pod, error = time.monotonic(), "", ""
            try:
                pod = dial()
            except OSError as failure:
                error = repr(failure)
            self.requests.append(Request(what, service.frontend, began, time.monotonic(), pod, error))

    def long(self, what: str, client: Host, where: tuple[str, int]) -> None:
        """Connections that are held for a while, and asked again and again."""
        chance = random.Random(what)
        while not self.over.is_set():
            with suppress(ConnectionError, TimeoutError), client.tcp(*where) as sock:
                sock.settimeout(10)
                pod, until = "", time.monotonic() + chance.uniform(0.5, 4)
                while time.monotonic() < until and not self.over.is_set():
                    try:
                        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                        answer = sock.recv(4096).rpartition(b"\r\n")[2].decode()
                        pod = pod or answer
                        if answer != pod:
                            self.broken.append(f"{what} at {pod}: {answer!r} answered")
                            break
                    except OSError as error:
                        self.broken.append(f"{what} at {pod}: {error!r}")
                        break
                    self.asked += 1
                    time.sleep(0.005)

    def steady_datagrams(self, what: str, client: Host, service: Service) -> None:
        """One socket, one source port: a flow that never ends by itself."""
        with client.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            while not self.over.is_set():
                began, pod, error = time.monotonic(), "", ""
                try:
                    sock.sendto(b"?", (str(service.address), service.port))
                    data, source = sock.recvfrom(100)
                    pod = data.decode()
                    assert source == (str(service.address), service.port)
                except OSError as failure:
                    error = repr(failure)
                self.requests.append(Request(what, service.frontend, began, time.monotonic(), pod, error))
                time.sleep(0.005)

    def connected_datagrams(self, what: str, client: Host, service: Service, history: History) -> None:
        """A socket that is led to its backend once, until the backend is gone and the socket is ended."""
        while not self.over.is_set():
            began, pod = time.monotonic(), ""
            try:
                with client.socket(type=socket.SOCK_DGRAM) as sock:
                    sock.settimeout(5)
                    sock.connect((str(service.address), service.port))
                    while not self.over.is_set():
                        sock.send(b"?")
                        pod = sock.recv(100).decode()
                        self.asked += 1
                        time.sleep(0.005)
            except OSError as error:
                if not any(pod not in state.members for state in history.during(began, time.monotonic())):
                    self.broken.append(f"{what} at {pod}: {error!r}")

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def wrong(request: Request, history: History) -> str:
    """What is wrong with a request, if anything."""
    states = history.during(request.began, request.ended)
    if request.error:
        idle = any(not state.candidates for state in states)
        return "" if idle else f"{request.what}: {request.error} after {request.ended - request.began:.2f} s"
    kept = request.service.protocol is Protocol.UDP  # of an earlier flow, if the source port is the same
    able = {pod for state in states for pod in (state.members if kept else state.candidates)}
    return "" if request.pod in able else f"{request.what}: {request.pod!r} was none of {sorted(able)}"


@frozen
class Place:
    """A lab with a node that balances sockets of one client, and packets of the others."""

    lab: Lab
    config: NodeConfig
    pods: dict[str, Host]
    packets: Host
    sockets: Host
    visitor: Host


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab.start(datapath=False))
        pins = PinDir(Path("/sys/fs/bpf") / f"kdtest-churn-{lab.name}")
        stack.callback(pins.remove)
        pods: dict[str, Host] = {}
        for number in range(1, 7):
            pods[f"web-{number}"] = pod = lab.pod(f"web-{number}")
            pod.serve_http(HTTP, pod.name)
            pod.serve_udp(UDP, pod.name)
        packets, sockets, visitor = lab.pod("packets"), lab.pod("sockets"), lab.external("visitor")
        config = NodeConfig(
            name="churn",
            netns=lab.node.netns,
            cgroup=sockets.cgroup.path,
            uplinks="eth0",
            pins=pins,
            capacity=CAPACITY,
            # of connections that are over nothing may be left that is not known to be: such stays for long
            timeouts=Timeouts(closed=1, one_way=2, answered=2, opening=600),
        )
        yield Place(lab, config, pods, packets, sockets, visitor)


@pytest.mark.timeout(int(SECONDS) + 180)
def test_endpoints_come_and_go_under_constant_traffic(place: Place) -> None:
    node_address = str(place.lab.node.address)
    services = [
        Service("10.96.0.10", 80, exposed=[Exposure("node_port", node_address, 30080)], name="web"),
        Service("10.96.0.53", 53, "UDP", exposed=[Exposure("node_port", node_address, 30053)], name="dns"),
        Service("fd00:10:96::10", 80, name="six"),
        Service("10.96.0.20", 80, name="flappy"),
    ]
    threads, descriptors = set(threading.enumerate()), open_files()
    with Node.open(place.config) as node:
        for pod in place.lab.node.pods:
            node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
        links, open_fds = place.config.pins.links if place.config.pins else [], descriptors_of(node)
        churn = Churn(node, place.pods, services, SEED)
        traffic = Traffic()
        resized = reaped = 0
        try:
            start_traffic(traffic, place, churn, services)
            began = time.monotonic()
            while time.monotonic() - began < SECONDS or not enough(churn, traffic):
                churn.step()
                time.sleep(churn.chance.uniform(0, 0.01))
                if churn.changes % 200 == 0:
                    reaped += len(node.reap_sockets())
                if churn.changes % 120 == 0:
                    resized += 1
                    node.resize(larger(CAPACITY, resized))
            took = time.monotonic() - began
        finally:
            traffic.end()
        failures = [said for each in traffic.requests if (said := wrong(each, churn.histories[each.service]))]
        failures += traffic.broken
        refused = sum(bool(request.error) for request in traffic.requests)
        print(f"\n{churn.changes} changes and {resized} resizes in {took:.0f} s")
        print(f"{len(traffic.requests)} requests, and {traffic.asked} over long connections")
        print(f"{len(failures)} failed; {refused} were refused by services without endpoints")
        print(f"{reaped} sockets of backends that were gone were ended")
        assert not failures, (len(failures), failures[:5])
        assert left(node) == {}
        assert descriptors_of(node) == open_fds
        assert (place.config.pins.links if place.config.pins else []) == links
    assert set(threading.enumerate()) <= threads
    assert not open_files() - descriptors


def enough(churn: Churn, traffic: Traffic) -> bool:
    """Whether as much has happened as is to happen, however slow the machine is."""
    return churn.changes > 20 * SECONDS and len(traffic.requests) > 50 * SECONDS


def descriptors_of(node: Node) -> int:
    """How many there are, with those of programs that are loaded when they are first asked for."""
    node.flows.collect()
    node.reap_flows()
    return len(Fd.live())


def open_files() -> Counter[str]:
    """What descriptors of this process are of."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            found[os.readlink(f"/proc/self/fd/{number}")] += 1
    return found


def larger(capacity: Capacity, steps: int) -> Capacity:
    """Tables of services grow with each step, those of flows and clients grow and shrink."""
    flows = 32768 * (1 + steps % 3)
    return evolve(
        capacity, services=256 + 64 * steps, backends=1024 + 256 * steps, flows=flows, clients=flows // 2
    )


def start_traffic(traffic: Traffic, place: Place, churn: Churn, services: list[Service]) -> None:
    web, dns, *_ = services

    def request(client: Host, service: Service, address: object, port: int) -> Callable[[], str]:
        if service.protocol is Protocol.UDP:
            return lambda: client.udp(str(address), port, b"?", timeout=10).data.decode()
        url = str(Frontend(address, port)).removesuffix("/TCP")
        return lambda: client.get(f"http://{url}", timeout=3 if service.name == "flappy" else 10).text

    for client in (place.packets, place.sockets):
        for each in services:
            what = f"{client.name} {each}"
            traffic.start(traffic.short, what, request(client, each, each.address, each.port), each)
        traffic.start(traffic.long, f"{client.name} long", client, (str(web.address), web.port))
        traffic.start(traffic.steady_datagrams, f"{client.name} flow", client, dns)
    history = churn.histories[dns.frontend]
    traffic.start(traffic.connected_datagrams, "sockets connected", place.sockets, dns, history)
    for each in (web, dns):
        (node_port,) = each.exposed
        dial = request(place.visitor, each, node_port.address, node_port.port)
        traffic.start(traffic.short, f"visitor {each}", dial, each)
    (node_port,) = web.exposed
    traffic.start(traffic.long, "visitor long", place.visitor, (str(node_port.address), node_port.port))


def left(node: Node) -> dict[str, object]:
    """What is still in use when services are gone, and flows have had the time to be forgotten."""
    node.services.plan([]).apply()
    deadline = time.monotonic() + 60
    while True:
        used = {name: each.used for name, each in node.pressure().items() if each.used}
        for name in ("kd_endpoints", "kd_affinity", "kd_sock_reply", "kd_fragments"):
            used.pop(name, None)  # of pods that are here, or of LRU: what is over makes room
        if not used or time.monotonic() > deadline:
            return {**used, **({"flows": [*map(str, node.flows.flows())][:5]} if used else {})}
        time.sleep(0.1)
