"""``k8sdatapath apply``: manifests into the kernel, once or as they change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from attrs import asdict, frozen

from k8sdatapath.cli.output import Output, OutputOption, console, show_value
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.errors import ModelError, SourceError
from k8sdatapath.model import IPAddress, address
from k8sdatapath.pins import PinDir

if TYPE_CHECKING:
    from k8sdatapath.component import Report
    from k8sdatapath.datapath.service_plan import ServicePlan
    from k8sdatapath.datapath.service_table import ServiceTable

__all__ = ["apply"]


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
    pins: PinsOption = DEFAULT_PINS,
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
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring the kernel's services to what Service and EndpointSlice manifests say.

    Maps and programs are pinned: they stay when the command has ended.
    """
    from k8sdatapath.kube import StaticYaml
    from k8sdatapath.node import Node, NodeConfig

    source = StaticYaml(*files)
    if dry_run:
        with planning_table(PinDir(pins)) as table:
            print_plan(table.plan(source.read()), None, output)
        return
    wanted = source.read()  # before anything is attached: bad manifests change nothing
    config = NodeConfig(uplinks=uplink or [], cgroup=cgroup, pins=PinDir(pins))
    with Node.open(config) as node:
        for pod in pod_device or ():
            node.attach_pod(pod.device, pod.addresses, pod_mac=pod.mac)
        for services in source.watch(on_error=complain) if watch else [wanted]:
            plan = node.services.plan(services)
            print_plan(plan, plan.apply(), output)


def planning_table(pins: PinDir) -> ServiceTable:
    """The services that are pinned; if none are, an empty table in memory, as large as it would be."""
    from k8sdatapath.datapath.service_table import CONTRACT, ServiceTable
    from k8sdatapath.maps import in_memory
    from k8sdatapath.objects import ObjectSpec

    if pins.maps:
        return ServiceTable.bind(pins)
    declared = ObjectSpec.from_file("pod").maps
    return ServiceTable.bind(
        {
            name: in_memory(kind, name, declared[name].max_entries, flags=declared[name].flags)
            for name, kind in CONTRACT.items()
        }
    )


def complain(error: SourceError) -> None:
    """Say what is wrong with the manifests; what was applied before remains."""
    console(stderr=True).print(f"error: {error}", style="red", markup=False)


def print_plan(plan: ServicePlan, report: Report | None, output: Output) -> None:
    """Show what was to do, and what was done."""
    if output is Output.TABLE:
        print(plan)
        if report is not None:
            print(report)
        return
    changes = [
        {
            "before": None if change.before is None else str(change.before.frontend),
            "after": None if change.after is None else str(change.after.frontend),
            "change": str(change),
        }
        for change in plan.changes
    ]
    done = None if report is None else asdict(report)
    show_value({"changes": changes, "unchanged": plan.unchanged, "report": done}, output)
