"""``k8sdatapath lab demo``: manifests in, load-balanced packets out, and a pod that leaves under load."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import yaml
from attrs import asdict, frozen
from rich.console import Console
from rich.live import Live
from rich.text import Text

from k8sdatapath.cli.output import Output, Row, aligned, console, show_value
from k8sdatapath.cli.traffic import KeptConnection, Traffic
from k8sdatapath.errors import LabError
from k8sdatapath.kube import StaticYaml
from k8sdatapath.lab import Lab, LabNode, Pod
from k8sdatapath.model import IPAddress, Protocol, Selection, Service

__all__ = ["Summary", "manifests_directory", "run"]

_PACKAGE = Path(__file__).parents[1]


@frozen
class Summary:
    """How it went.

    :ivar deviation: the largest of any backend's share from an even one, in standard deviations.
    :ivar late: requests that the removed pod answered although they were begun after its removal.
    :ivar opened: connections to that pod made before it; ``kept`` of them went on.
    """

    requests: int
    failed: int
    deviation: float
    removed: str
    late: int
    opened: int
    kept: int

    @property
    def well(self) -> bool:
        """Whether no client noticed anything."""
        return self.failed == 0 and self.late == 0 and self.kept == self.opened

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.failed} failed.\n"
            f"Random selection: no backend is more than {self.deviation} standard deviations off its share.\n"
            f"{self.removed} left under load: of the requests begun afterwards {self.late} reached it, "
            f"of {self.opened} connections opened before {self.kept} went on."
        )


def manifests_directory() -> Path:
    """The manifests of the checkout, or the copy of them in an installed package."""
    checkout = _PACKAGE.parent / "examples" / "manifests"
    return checkout if checkout.is_dir() else _PACKAGE / "_manifests"


def run(manifests: Path, seconds: float, output: Output) -> bool:
    """Show it; whether no client noticed anything."""
    screen = console(stderr=output is not Output.TABLE)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k8sdatapath-")))
        source = StaticYaml(shutil.copytree(manifests, scratch / "manifests"))
        several = [service for service in source.read() if len(service.backends) > 1]
        if not several:
            raise LabError(f"no service of {manifests} has two backends, of which one could leave")
        shrinking = min(several, key=lambda service: service.protocol)  # TCP if there is: connections stay

        started = time.perf_counter()
        demo = Demo(stack.enter_context(Lab.start()), source, screen)
        took = time.perf_counter() - started
        screen.print(
            f"A lab of {len(demo.node.pods)} pods, and a host outside of the cluster, in {took:.1f} s.\n"
        )
        screen.print(f"The services of {manifests}:")
        summary = demo.play(shrinking, seconds)
    if output is not Output.TABLE:
        show_value(asdict(summary), output)
    return summary.well


class Demo:
    """A lab with the pods that manifests ask for, and two clients: one in a pod, one outside."""

    def __init__(self, lab: Lab, source: StaticYaml, screen: Console) -> None:
        self.node = lab.node
        self._source = source
        self._screen = screen
        self._wanted = source.read()
        client = lab.pod("client")
        self._pods = start_pods(lab, self._wanted)
        self._clients = (client, lab.external("outside"))

    def play(self, shrinking: Service, seconds: float) -> Summary:
        """Balance the services; after half the time the last backend of ``shrinking`` leaves."""
        self._apply(self._wanted)
        view = View(self.node, self._wanted, self._pods)
        leaving = self._pods[shrinking.backends[-1].address]
        with ExitStack() as connections:
            with Traffic(self._clients, [service.frontend for service in self._wanted]) as traffic:
                self._screen.print(
                    "A pod (balanced at its sockets) and the host outside (packet by packet) dial them.\n"
                    "ANSWERS is what they got, KERNEL the flows it counted "
                    "(a UDP port used again is one flow):"
                )
                view.watch(traffic, seconds / 2, self._screen)
                deviation = view.deviation()
                kept = [connections.enter_context(each) for each in self._connections(leaving)]
                removed = self._remove(leaving)
                view.watch(traffic, seconds / 2, self._screen)
            summary = Summary(
                requests=len(traffic.answers),
                failed=len(traffic.failures),
                deviation=round(deviation, 1),
                removed=leaving.name,
                late=sum(each.pod == leaving.name and each.began > removed for each in traffic.answers),
                opened=len(kept),
                kept=sum(connection.ask() == leaving.name for connection in kept),
            )
        self._tell(summary, traffic.failures)
        return summary

    def _apply(self, wanted: Sequence[Service]) -> None:
        """Bring the node to what is wanted, showing plan and report."""
        plan = self.node.services.plan(wanted)
        for line in str(plan).splitlines():
            self._screen.print(f"  {line}", markup=False)
        self._screen.print(f"  {plan.apply()}\n")

    def _connections(self, pod: Pod) -> Iterator[KeptConnection]:
        """From each client through each frontend that the pod is behind."""
        for service in self._wanted:
            if service.protocol is Protocol.TCP and backed_by(pod, service):
                for client in self._clients:
                    yield KeptConnection.to(pod.name, client, service.frontend)

    def _remove(self, pod: Pod) -> float:
        """Have a pod leave; returns when it had left."""
        self._screen.print(f"{pod.name} goes from its EndpointSlices while requests are under way:")
        remove_endpoint(self._source.paths[0], pod)
        self._apply(self._source.read())
        return time.monotonic()

    def _tell(self, summary: Summary, failures: Sequence[str]) -> None:
        self._screen.print("What the programs did, as they count it:")
        for counter in self.node.datapath.counters().values():
            self._screen.print(f"  {counter.packets:8}  {counter.outcome.meaning}")
        self._screen.print(f"\n{summary}", style="green" if summary.well else "red")
        for failure in failures[:10]:
            self._screen.print(failure, style="red", markup=False)


def start_pods(lab: Lab, wanted: Sequence[Service]) -> dict[IPAddress, Pod]:
    """A pod for each address that the manifests name as a backend, serving what they say.

    :raises LabError: an address that no pod of this lab will have.
    """
    pods: dict[IPAddress, Pod] = {}
    members = {backend.address: service for service in wanted for backend in service.backends}
    numbers: Counter[str] = Counter()
    for address in sorted(members, key=lambda each: (each.version, each)):
        if address in pods:  # by its other family
            continue
        app = members[address].name.rpartition("/")[2].partition(":")[0]
        numbers[app] += 1
        pod = lab.pod(f"{app}-{numbers[app]}")
        pods |= dict.fromkeys(pod.addresses, pod)
        if address not in pods:
            raise LabError(
                f"the manifests name {address} as a backend; the next pod of this lab is "
                f"{pod.address} and {pod.address6}"
            )
    ports = {(pods[b.address], b.port, s.protocol) for s in wanted for b in s.backends}
    for pod, port, protocol in ports:
        serve = pod.serve_udp if protocol is Protocol.UDP else pod.serve_http
        serve(port, pod.name)
    return pods


def backed_by(pod: Pod, service: Service) -> bool:
    """Whether a pod is a backend of a service."""
    return any(backend.address in pod.addresses for backend in service.backends)


def remove_endpoint(directory: Path, pod: Pod) -> None:
    """Rewrite the manifests without the endpoints that are this pod."""
    gone = {str(address) for address in pod.addresses}
    for path in directory.glob("*.y*ml"):
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
        for document in documents:
            if "endpoints" in document:
                endpoints = document["endpoints"]
                document["endpoints"] = [each for each in endpoints if not gone & {*each["addresses"]}]
        path.write_text(yaml.safe_dump_all(documents))


class View:
    """What can be seen of the traffic: who answered the clients, and what the kernel counted."""

    def __init__(self, node: LabNode, services: Sequence[Service], pods: dict[IPAddress, Pod]) -> None:
        self._table = node.services
        self._services = services
        self._pods = pods

    def watch(self, traffic: Traffic, seconds: float, screen: Console) -> None:
        """Show it for a while: a live table on a terminal, else a line each second, then the table."""
        ends = time.monotonic() + seconds
        live = Live(console=screen, auto_refresh=False) if screen.is_terminal else None
        with live or nullcontext():
            while (left := ends - time.monotonic()) > 0:
                time.sleep(min(0.2 if live else 1, left))
                line = f"  {len(traffic.answers)} requests, {len(traffic.failures)} failed"
                if live:
                    live.update(Text("\n").join([Text(line), *self._lines(traffic)]), refresh=True)
                else:
                    screen.print(line)
        for text in [] if live else self._lines(traffic):
            screen.print(text)
        screen.print()

    def _lines(self, traffic: Traffic) -> list[Text]:
        answers = Counter((answer.frontend, answer.pod) for answer in traffic.answers)
        rows: list[Row] = []
        for service in self._services:
            flows = self._table.flows(service.frontend)
            for backend in service.backends:
                pod = self._pods[backend.address].name
                rows.append(
                    {
                        "frontend": service.frontend,
                        "backend": backend,
                        "pod": pod,
                        "answers": answers[service.frontend, pod],
                        "kernel": flows.get(backend, "removed"),
                    }
                )
        return list(aligned(rows, indent=2))

    def deviation(self) -> float:
        """The largest of any backend's count of flows from an even share, where selection is random."""
        worst = 0.0
        for service in self._services:
            counts = list(self._table.flows(service.frontend).values())
            share = 1 / len(counts) if counts else 1
            spread = math.sqrt(sum(counts) * share * (1 - share))
            if service.selection is Selection.RANDOM and spread:
                worst = max(worst, *(abs(count - sum(counts) * share) / spread for count in counts))
        return worst
