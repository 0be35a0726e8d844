"""An agent as a process: it logs, is told to read its configuration again, and ends with a word."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import k8sdatapath
from k8sdatapath.agent import log
from k8sdatapath.agent.agent import Agent
from k8sdatapath.agent.config import AgentConfig
from k8sdatapath.errors import ConfigError, DatapathError, LayoutError
from k8sdatapath.pins import BPFFS
from k8sdatapath.reconcile import ShortPauses

__all__ = ["Process"]

_log = logging.getLogger(__name__)


class Process:
    """Runs an agent.

    :param again: reads the configuration anew.
    """

    def __init__(self, config: AgentConfig, again: Callable[[], AgentConfig]) -> None:
        self.config = config
        self._again = again
        self._hung_up = threading.Event()
        log.set_up(config.log_level, config.log_format)
        self._pauses = ShortPauses()

    def run(self, stop: threading.Event) -> None:
        """Until told to stop, in the network namespace of the calling thread.

        :raises DatapathError: it cannot start, or has ended by itself.
        """
        about = {"node": self.config.node_name, "version": k8sdatapath.__version__}
        _log.info("starting", extra={**about, "pins": str(self.config.pins)})
        for note in self.config.ignored:
            _log.warning("%s", note)
        if self.config.pins.is_relative_to(BPFFS) and _of_this_process_alone():
            _log.warning(
                "%s is of this mount namespace alone: what is pinned there ends with it. Give the agent the"
                " machine's, or its network namespace by --netns or nsenter --net rather than ip netns exec",
                BPFFS,
            )
        with Agent(self.config, self._pauses) as agent:
            agent.run(stop, self._news)
            _log.info("stopping; the datapath goes on", extra=about)

    def tell(self, error: DatapathError | OSError) -> None:
        """Say in the log why it could not start, or has ended by itself; nothing comes after that."""
        if isinstance(error, LayoutError):
            _log.critical(
                "what another version has pinned goes on as it is, and cannot be turned into what this one"
                " needs; go back to that version, or drain the node: k8sdatapath agent --cleanup removes it,"
                " and interrupts what it balances until the next start"
            )
        _log.critical("%s", error, extra={"node": self.config.node_name, "version": k8sdatapath.__version__})

    def reload(self) -> None:
        """Have the configuration read again, soon; may be called in any thread."""
        self._hung_up.set()

    def _news(self) -> AgentConfig | None:
        """The configuration as it is now, if that was asked for."""
        if not self._hung_up.is_set():
            return None
        self._hung_up.clear()
        try:
            config = self._again()
        except ConfigError as error:
            _log.error("the configuration was not taken over: %s", error)
            return None
        log.set_up(config.log_level, config.log_format)
        _log.info("configuration read again")
        return config


def _of_this_process_alone() -> bool:
    """Whether the BPF filesystem where it should be is not mounted, in a mount namespace of our own."""
    if BPFFS.is_mount():
        return False
    try:
        return os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt")
    except OSError:
        return False
