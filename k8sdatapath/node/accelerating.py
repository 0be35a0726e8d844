"""Where a node's accelerated connections begin and end.

A socket keeps the programs that it was taken in with until it closes, and so the maps that these know. Before
one of those maps is given up, for others or for none, its pair is taken away: it goes on through the stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from k8sdatapath import maps
from k8sdatapath.errors import DeviceGoneError
from k8sdatapath.links import KernelLink
from k8sdatapath.node.config import NodeConfig
from k8sdatapath.objects import Object
from k8sdatapath.pins import PinDir
from k8sdatapath.pybpf.memory import wait_for_programs

if TYPE_CHECKING:
    from k8sdatapath.datapath.socket_accelerator import SocketAccelerator

__all__ = ["CONNECT", "accelerator_of", "let_go", "stop_pinned"]

#: The program that makes pairs.
CONNECT = "accel_connect"


def accelerator_of(
    config: NodeConfig, objects: Mapping[str, Object], own: ExitStack
) -> SocketAccelerator | None:
    """That of a node, if it has one; with pins its pairs outlive it."""
    if not config.accelerate:
        return None
    from k8sdatapath.datapath.socket_accelerator import SocketAccelerator

    accelerator = own.enter_context(SocketAccelerator.bind(objects["accelerator"]))
    if config.pins is None:
        own.callback(accelerator.release)
    return accelerator


def let_go(accelerator: SocketAccelerator | None) -> None:
    """Nobody makes pairs by the old programs any more: take those away that they have made."""
    if accelerator is not None:
        wait_for_programs()
        accelerator.release()


def stop_pinned(pins: PinDir) -> None:
    """The same for what an earlier process has pinned, of whatever version; and no more are made."""
    for name in pins.links:
        if name.partition("-")[0] == CONNECT:
            path = pins.link_path(name)
            with KernelLink.open_pinned(path) as link, suppress(DeviceGoneError):
                link.detach()
            path.unlink()
    if "kd_accel_pairs" in pins.maps:
        wait_for_programs()
        with maps.bind(maps.Hash, pins.open_map("kd_accel_pairs"), owned=True) as pairs:
            pairs.delete_many(list(pairs))
