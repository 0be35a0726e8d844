"""Takes away what an agent has left on a node: all of it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.cni.attachment import AttachmentStore
from k8sdatapath.cni.server import unlink_abandoned
from k8sdatapath.datapath.direct_routes import DirectRoutes
from k8sdatapath.errors import DatapathError, DeviceGoneError
from k8sdatapath.links import KernelLink
from k8sdatapath.pins import PinDir

__all__ = ["clean_up"]


def clean_up(config: AgentConfig) -> tuple[str, ...]:
    """Remove the pins of an agent with this configuration, and with them its programs, maps and links.

    To be called in the agent's network namespace: its tunnel device goes too, and its routes.

    What is pinned elsewhere, such as another agent's, is not looked at.

    :returns: what was removed.
    :raises PinsBusyError: the agent is still running.
    :raises BpffsError: something is there that no agent has pinned.
    """
    return tuple(_clean_up(config))


def _clean_up(config: AgentConfig) -> Iterator[str]:
    pins = PinDir(config.pins)
    if pins.path.exists():
        with pins.lock():  # nobody starts while we are at it
            yield from (str(pins.link_path(name)) for name in pins.links)
            yield from (str(pins.map_path(name)) for name in pins.maps)
            for name in pins.links:  # else programs stay for a moment that the kernel chooses
                with suppress(DatapathError), KernelLink.open_pinned(pins.link_path(name)) as link:
                    link.detach()
            pins.remove()
        yield str(pins.path)
    if config.tunnel is not None:
        with suppress(DeviceGoneError):
            config.tunnel.remove()
            yield f"device {config.tunnel.device}"
    if config.direct_routes and (removed := DirectRoutes().remove()):
        yield f"{removed} routes to pods of other nodes"
    if config.cni_socket is not None:
        # a word too few in a path must not cost what is there: only what an agent makes goes
        if unlink_abandoned(config.cni_socket):
            yield str(config.cni_socket)
        state = config.cni_socket.with_suffix(".pods")
        if state.is_dir() and AttachmentStore(state).clear():
            yield str(state)
