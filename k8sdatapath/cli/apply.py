"""``k8sdatapath apply``: manifests into the kernel, once or as they change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict, frozen

from k8sdatapath.cli.output import Output, OutputOption, console, show_value
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.errors import DatapathError, ModelError, NotSupportedError, SourceError
from k8sdatapath.model import IPAddress, IPNetwork, Service, address, network
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.component import Report
    from k8sdatapath.datapath.service_plan import ServicePlan
    from k8sdatapath.datapath.service_table import ServiceTable
    from k8sdatapath.kube import NodeView, StaticYaml
    from k8sdatapath.node import Node, NodeConfig

__all__ = ["apply"]

_MAC = re.compile("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


@frozen
class PodDevice:
    """What ``--pod-device`` says."""

    device: str
    mac: str
    addresses: tuple[IPAddress, ...]

    @classmethod
    def parse(cls, text: str) -> PodDevice:
        """Read ``DEVICE=MAC,ADDRESS[,ADDRESS]``."""
        device, equals, rest = text.partition("=")
        mac, *addresses = rest.split(",")
        if not (device and equals and mac and addresses):
            raise ModelError(f"{text!r} is not DEVICE=MAC,ADDRESS[,ADDRESS]")
        if not _MAC.fullmatch(mac):
            raise ModelError(f"{mac!r} is not a MAC: write 02:00:0a:f4:01:02")
        return cls(device, mac, tuple(map(address, addresses)))


def apply(
    files: Annotated[
        list[Path],
        typer.Option("--filename", "-f", metavar="PATH", help="A manifest, or a directory of them."),
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and apply every change of the files.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Remove all services if the manifests name none.")
    ] = False,
    pins: PinsOption = DEFAULT_PINS,
    service_network: Annotated[
        # Of two types, which typer does not take.
        list[Any] | None,
        typer.Option(parser=network, metavar="NETWORK", help="All its addresses are cluster IPs."),
    ] = None,
    uplink: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE", help="Balance packets that arrive here.")
    ] = None,
    pod_device: Annotated[
        list[PodDevice] | None,
        typer.Option(
            parser=PodDevice.parse,
            metavar="DEVICE=MAC,ADDRESS[,ADDRESS]",
            help="Balance the packets of a pod: the node's end of its veth, the pod's MAC and addresses.",
        ),
    ] = None,
    cgroup: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Balance the sockets of processes in this cgroup.")
    ] = None,
    node_name: Annotated[
        str,
        typer.Option(metavar="NAME", help="This node's, as endpoints name it. Without it: cluster IPs only."),
    ] = "",
    node_zone: Annotated[
        str, typer.Option(metavar="ZONE", help="Prefer endpoints that are meant for this zone.")
    ] = "",
    node_address: Annotated[
        list[Any] | None,
        typer.Option(parser=address, metavar="ADDRESS", help="Where clients dial this node; default: found."),
    ] = None,
    node_port_networks: Annotated[
        list[Any] | None,
        typer.Option(parser=network, metavar="CIDR", help="Node ports are at addresses in here only."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring the kernel's services to what Service and EndpointSlice manifests say.

    Maps and programs are pinned: they stay when the command has ended.
    """
    from k8sdatapath.kube import StaticYaml
    from k8sdatapath.node import NodeConfig

    view = view_of(node_name, node_zone, node_address or (), node_port_networks or ())
    source, printer = StaticYaml(*files, node=view), Printer(output, lines=watch)
    if dry_run:
        with planning_table(PinDir(pins), service_network or ()) as table:
            printer.show(table.plan(source.read()))
        for note in notes_of(source):
            remark(note)
        return
    wanted = source.read()  # before anything is attached: bad manifests change nothing
    check_some(wanted, source, allow_empty=allow_empty)
    config = NodeConfig(
        uplinks=uplink or (), cgroup=cgroup, pins=PinDir(pins), service_networks=service_network or ()
    )
    with start(config, pod_device or (), wanted, printer) as node:
        end_sockets(node)
        for note in notes_of(source):
            remark(note)
        if watch:
            health_at = view.node_port_addresses if view else ()
            follow(source, node, health_at, printer, allow_empty=allow_empty)
        elif source.health_checks:
            remark("health check node ports are answered under --watch only")


def check_some(wanted: Sequence[Service], source: StaticYaml, *, allow_empty: bool) -> None:
    """See that services are wanted: an empty directory may be a mistake, and would remove all.

    :raises SourceError: there are none, and nobody has said that this is meant.
    """
    if not wanted and not allow_empty:
        where = ", ".join(map(str, source.paths))
        raise SourceError(f"no service to balance in {where}: to remove those there are, say --allow-empty")


def follow(
    source: StaticYaml, node: Node, health_at: Iterable[IPAddress], printer: Printer, *, allow_empty: bool
) -> None:
    """Apply every change of the manifests, and tell load balancers whether the node has endpoints."""
    from k8sdatapath.kube.health import HealthServer

    said = set(notes_of(source))
    with HealthServer(health_at) as health:
        for services in source.watch(on_error=complain):
            node.check_pins()  # without them, what is applied ends with this process and nobody finds it
            try:
                check_some(services, source, allow_empty=allow_empty)
                plan = node.services.plan(services)
                if not plan.empty:
                    printer.carry_out(plan)
                    end_sockets(node)
                health.plan(source.health_checks).apply()
            except DatapathError as error:
                complain(error)
            unheard = [
                f"nobody can ask at {where}:{port}: {why}" for (where, port), why in health.failed.items()
            ]
            notes = [*notes_of(source), *unheard]
            for note in notes:
                if note not in said:
                    remark(note)
            said = set(notes)


def notes_of(source: StaticYaml) -> list[str]:
    """What is otherwise than somebody may think who sees the files."""
    notes = list(source.notes)
    if source.ignored:
        passed = ", ".join(f"{count} {what}" for what, count in sorted(source.ignored.items()))
        notes.append(f"passed over: {passed}{'' if source.node else ' (--node-name has more programmed)'}")
    return notes


def view_of(
    name: str, zone: str, addresses: Iterable[IPAddress], networks: Iterable[IPNetwork]
) -> NodeView | None:
    """The node that manifests are read for, if its name is given."""
    from k8sdatapath.kube import NodeView
    from k8sdatapath.net.netlink import Netlink

    if not name:
        if zone or addresses or networks:
            raise typer.BadParameter("what a node has is of use with --node-name only")
        return None
    if not addresses:
        with Netlink() as net:
            addresses = net.addresses()
    return NodeView(name, zone, addresses, networks)


def start(config: NodeConfig, pods: Iterable[PodDevice], wanted: Iterable[Service], printer: Printer) -> Node:
    """A node that balances what is wanted; or an error, and what was there before."""
    from k8sdatapath.node import Node

    pins = config.pins
    assert pins is not None
    with ExitStack() as undo, pins.restored_on_error():  # while the node still has the lock of the pins
        node = undo.enter_context(Node.open(config, prune=False))
        for pod in pods:
            before = pins.links
            node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
            if pins.links != before:  # not taken over from an earlier command
                undo.callback(node.detach_pod, pod.device, pod.addresses)
        printer.carry_out(node.services.plan(wanted))
        node.prune()  # last: had anything failed, they would still be of use
        undo.pop_all()
        return node


def end_sockets(node: Node) -> None:
    """Let UDP clients know that are connected to a backend which has gone, where the kernel can."""
    if node.config.cgroup is not None:
        with suppress(NotSupportedError):
            node.reap_sockets()


def planning_table(pins: PinDir, networks: Iterable[IPNetwork]) -> ServiceTable:
    """The services that are pinned; if none are, an empty table in memory, as large as it would be."""
    from k8sdatapath.datapath.service_table import CONTRACT, ServiceTable
    from k8sdatapath.maps import in_memory
    from k8sdatapath.objects import ObjectSpec

    if pins.maps:
        return ServiceTable.bind(pins, service_networks=networks)
    declared = ObjectSpec.from_file("pod").maps
    return ServiceTable.bind(
        {
            name: in_memory(kind, name, declared[name].max_entries, flags=declared[name].flags)
            for name, kind in CONTRACT.items()
        },
        service_networks=networks,
    )


def complain(error: DatapathError) -> None:
    """Say what is wrong; what was applied before remains."""
    console(stderr=True).print(f"error: {error}", style="red", markup=False)


def remark(note: str) -> None:
    """Say what is otherwise than somebody may think."""
    console(stderr=True).print(f"note: {note}", style="yellow", markup=False)


@frozen
class Printer:
    """Shows what is to be done and what was done.

    :ivar lines: that more than one plan is to come: each JSON document is a line.
    """

    output: Output
    lines: bool = False

    def show(self, plan: ServicePlan) -> None:
        """Show what would be done."""
        if self.output is Output.TABLE:
            print(plan)
        else:
            self._document(plan, None)

    def carry_out(self, plan: ServicePlan) -> None:
        """Show the plan, apply it, show the report; for programs, both in one document after it."""
        if self.output is Output.TABLE:
            print(plan)
            print(plan.apply())
        else:
            self._document(plan, plan.apply())

    def _document(self, plan: ServicePlan, report: Report | None) -> None:
        changes = [
            {
                "before": None if change.before is None else str(change.before.frontend),
                "after": None if change.after is None else str(change.after.frontend),
                "change": str(change),
            }
            for change in plan.changes
        ]
        done = None if report is None else asdict(report)
        show_value(
            {"changes": changes, "unchanged": plan.unchanged, "report": done}, self.output, lines=self.lines
        )
