"""``k8sdatapath explain``: what would become of a packet, beside whatever runs the datapath."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from k8sdatapath.cli.names import Names
from k8sdatapath.cli.output import Output, OutputOption, show_value
from k8sdatapath.cli.policy import HeaderOption, RequestOption
from k8sdatapath.cli.services import DEFAULT_PINS, PinsOption
from k8sdatapath.datapath.explanation import Explanation, Place
from k8sdatapath.errors import ModelError
from k8sdatapath.model import Protocol, network
from k8sdatapath.model.address import shown
from k8sdatapath.model.frontend import to_protocol
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import ConfigValue
from k8sdatapath.pins import PinDir

__all__ = ["explain"]


def _family(given: Any) -> int:
    """The default is asked about as well, and is no text."""
    if str(given) not in ("4", "6"):
        raise ModelError(f"{shown(given)} is neither 4 nor 6")
    return int(given)


def explain(
    sender: Annotated[
        str, typer.Option("--from", metavar="WHO", help="ADDRESS[:PORT] or NAMESPACE/POD that sends it.")
    ],
    dialled: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="WHAT",
            help="10.96.0.10:80/TCP, NAMESPACE/POD:PORT, or svc/[NAMESPACE/]NAME:PORT.",
        ),
    ],
    protocol: Annotated[
        Protocol | None, typer.Option(parser=to_protocol, metavar="NAME", help="TCP or UDP.")
    ] = None,
    at: Annotated[Place, typer.Option(help="Where it is met.")] = Place.POD,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="That it comes in through; a pod's is found by its address.")
    ] = "",
    service_network: Annotated[
        list[Any] | None,
        typer.Option(parser=network, metavar="NETWORK", help="As if the datapath had been told so."),
    ] = None,
    tunnel_device: Annotated[
        str, typer.Option(metavar="DEVICE", help="That leads to pods of other nodes, if one does.")
    ] = "",
    redirect: Annotated[bool | None, typer.Option(help="As if the datapath had been told so.")] = None,
    sources: Annotated[
        list[Path] | None, typer.Option("--source", metavar="PATH", help="Manifests to look up names in.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of the cluster to look up names in.")
    ] = None,
    request: RequestOption = "",
    header: HeaderOption = None,
    family: Annotated[
        int, typer.Option(parser=_family, metavar="4|6", help="Of names that have addresses of both.")
    ] = 4,
    pins: PinsOption = DEFAULT_PINS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell what would become of the first packet to a frontend, and why. Nothing is changed.

    The programs themselves are run on it, over the pinned tables; what comes from a pod meets one after the
    other, as far as it gets on this node.
    """
    from k8sdatapath.datapath.explainer import Device, Explainer
    from k8sdatapath.datapath.request_judge import RequestJudge
    from k8sdatapath.datapath.walk import Walk, walk

    names = Names(sources or (), kubeconfig)
    source, port = names.sender(sender, family)
    frontend = names.dialled(dialled, protocol, family)
    with NetNs.current() as here:
        cookie = here.cookie
    config: dict[str, ConfigValue] = {"node_netns": cookie}
    if redirect is not None:
        config["redirect"] = redirect
    if tunnel_device:
        config["tunnel_device"] = Device.find(tunnel_device).index
    config |= {f"service_ipv{each.version}": each for each in service_network or ()}
    text = "\n".join([request, *(header or ())])
    with Explainer.bind(PinDir(pins), config=config) as explainer, ExitStack() as own:
        said: Walk | Explanation
        if at is Place.POD and not device:
            judge = own.enter_context(RequestJudge.bind(PinDir(pins))) if request else None
            said = walk(explainer, frontend, source, port=port, request=text, requests=judge)
        else:
            at_device = Device.find(device) if device else None
            of_socket = cookie if at is Place.SOCKET else 0
            said = explainer.dial(frontend, source, at, port=port, device=at_device, cookie=of_socket)
    if output is Output.TABLE:
        print(said)
    else:
        show_value(said.as_dict(), output)
