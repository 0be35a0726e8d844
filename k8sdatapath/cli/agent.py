"""``k8sdatapath agent``: a node's datapath, kept as its cluster has it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from k8sdatapath.cli.output import Output, OutputOption, show
from k8sdatapath.errors import DatapathError

if TYPE_CHECKING:
    from k8sdatapath.agent.config import AgentConfig

__all__ = ["agent"]

Text = str | None
P = ParamSpec("P")
T = TypeVar("T")


def agent(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What else is said; flags are stronger.")
    ] = None,
    node_name: Annotated[Text, typer.Option(metavar="NAME", help="This node's; else the host name.")] = None,
    kubeconfig: Annotated[
        Text, typer.Option(metavar="FILE", help="How to reach the API server; else as pods do.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Manifests instead of an API server.")
    ] = None,
    replay: Annotated[
        Text, typer.Option(metavar="FILE", help="A recording instead of an API server.")
    ] = None,
    record: Annotated[Text, typer.Option(metavar="FILE", help="Write down what the source tells.")] = None,
    netns: Annotated[Text, typer.Option(metavar="NAME", help="Work in this network namespace.")] = None,
    uplink: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE", help="Balance packets that arrive here.")
    ] = None,
    pod_device_pattern: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Devices of pods, as in 'veth*'; else veths.")
    ] = None,
    cni_socket: Annotated[
        Text, typer.Option(metavar="PATH", help="Where k8sdatapath-cni tells of pods; none are looked for.")
    ] = None,
    cgroup: Annotated[
        Text, typer.Option(metavar="DIR", help="Balance the sockets of processes in this cgroup.")
    ] = None,
    masq_config: Annotated[
        Text, typer.Option(metavar="FILE", help="What is not masqueraded, as ip-masq-agent has it.")
    ] = None,
    bpffs: Annotated[Text, typer.Option(metavar="DIR", help="Where the datapath is pinned.")] = None,
    listen: Annotated[
        Text, typer.Option(metavar="HOST:PORT", help="Answer probes and Prometheus here, or 'none'.")
    ] = None,
    log_level: Annotated[Text, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
    log_format: Annotated[Text, typer.Option(metavar="FORMAT", help="json or text.")] = None,
    cleanup: Annotated[
        bool, typer.Option("--cleanup", help="Remove what an agent so configured has left, and end.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Keep a node's datapath as its Kubernetes cluster has it, until stopped; then it runs on without.

    SIGTERM and SIGINT stop the agent, SIGHUP makes it read its configuration again.
    """
    given = {
        "nodeName": node_name,
        "kubeconfig": kubeconfig,
        "source": source,
        "replay": replay,
        "record": record,
        "netns": netns,
        "uplinks": uplink,
        "podDevicePattern": pod_device_pattern,
        "cniSocket": cni_socket,
        "cgroup": cgroup,
        "masqConfig": masq_config,
        "bpffs": bpffs,
        "listen": listen,
        "log.level": log_level,
        "log.format": log_format,
    }
    flags = {word: value for word, value in given.items() if value not in (None, [])}
    told = load(config, flags)
    if cleanup:
        from k8sdatapath.agent.cleanup import clean_up

        removed = inside(told, clean_up, told)
        show([{"removed": what} for what in removed], output)
    else:
        serve(told, lambda: load(config, flags))


def inside(config: AgentConfig, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in the agent's network namespace."""
    from k8sdatapath.net.netns import NetNs

    if not config.netns:
        return function(*args, **kwargs)
    with NetNs.open(config.netns) as netns:
        return netns.call(function, *args, **kwargs)


def load(path: Path | None, flags: dict[str, Any]) -> AgentConfig:
    """What the file says, and the flags."""
    from k8sdatapath.agent.config import AgentConfig

    return AgentConfig.load(path, {word: _split(value) for word, value in flags.items()})


def _split(value: Any) -> Any:
    """A flag that is given several times may have commas as well."""
    if not isinstance(value, list):
        return value
    return [part for each in value for part in each.split(",")]


def serve(config: AgentConfig, again: Callable[[], AgentConfig]) -> None:
    """Run an agent until a signal comes.

    :param again: reads the configuration anew.
    """
    from k8sdatapath.agent.process import Process

    process = Process(config, again)
    stop = threading.Event()
    try:
        with heeding({signal.SIGTERM: stop.set, signal.SIGINT: stop.set, signal.SIGHUP: process.reload}):
            inside(config, process.run, stop)
    except (DatapathError, OSError) as error:  # told where all else is, which may be read by a program
        process.tell(error)
        raise typer.Exit(1) from error


@contextmanager
def heeding(calls: Mapping[int, Callable[[], None]]) -> Iterator[None]:
    """Have a thread do what signals call for: whom a signal interrupts may hold the lock that this takes.

    Signals that come afterwards, when the process is about to end, do nothing.
    """
    told: SimpleQueue[int] = SimpleQueue()  # its put() may be interrupted by itself

    def heed() -> None:
        while number := told.get():
            calls[number]()

    for number in calls:
        signal.signal(number, lambda number, _: told.put(number))
    thread = threading.Thread(target=heed, name="signals")
    thread.start()
    try:
        yield
    finally:
        told.put(0)
        thread.join()
