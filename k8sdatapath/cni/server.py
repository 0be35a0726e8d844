"""The agent's ear for the CNI plugin."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from k8sdatapath.cni.attachment import Attachment, AttachmentKey, AttachmentStore
from k8sdatapath.cni.protocol import LONGEST, CniCode, CniError
from k8sdatapath.errors import DatapathError, DeviceGoneError, KernelError
from k8sdatapath.model import IPAddress
from k8sdatapath.net.netlink import Netlink, link_index
from k8sdatapath.net.netns import NetNs
from k8sdatapath.resource import Resource

__all__ = ["CniServer", "PodHolder", "unlink_abandoned"]

_PATIENCE = 5.0
"""Seconds that a client has to say what it wants."""
_log = logging.getLogger(__name__)


class PodHolder(Protocol):
    """Who takes pods into a datapath, such as a :class:`~k8sdatapath.node.Node`."""

    def attach_pod(self, device: str, addresses: Iterable[IPAddress], *, pod_mac: str) -> None:
        """Take a pod in."""
        ...

    def detach_pod(self, device: str, addresses: Iterable[IPAddress]) -> None:
        """Let a pod go; without addresses, its device."""
        ...


class CniServer(Resource):
    """Attaches the pods that ``k8sdatapath-cni`` tells of to a node, and lets go of those that leave.

    ::

        with Node.open(config) as node, CniServer(node, socket="/run/x/cni.sock", state="/run/x/pods"):
            ...

    What was attached is noted in ``state``, so that an agent that starts again knows its pods; those whose
    devices have gone meanwhile are let go at once. One thread answers, one request after the other, and it
    alone calls ``pods``.

    :param pods: the node.
    :param socket: where the plugin asks. Only root may: the directory is made with mode 0700.
    :param state: a directory for the notes.
    :param netns: the node's network namespace; None is that of the calling thread.
    :raises KernelError: the socket cannot be made, or is another agent's.
    """

    def __init__(
        self,
        pods: PodHolder,
        *,
        socket: str | os.PathLike[str],
        state: str | os.PathLike[str],
        netns: NetNs | None = None,
    ) -> None:
        self.path = Path(socket)
        self._pods = pods
        self._netns = netns
        self._store = AttachmentStore(state)
        self._take_up()
        self._listener = _listen(self.path)
        self._thread = threading.Thread(target=self._serve, name="CNI", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether somebody answers."""
        return self._thread.is_alive()

    @property
    def attachments(self) -> dict[AttachmentKey, Attachment]:
        """What is attached."""
        return dict(self._store)

    def _take_up(self) -> None:
        for key, attachment in self._store:
            try:
                self._attach(attachment)
            except DeviceGoneError:
                self._release(key)

    def _in_netns(self, function: Callable[[], Any]) -> Any:
        return function() if self._netns is None else self._netns.call(function)

    def _is_veth(self, name: str) -> bool:
        def ask() -> bool:
            with Netlink() as net:
                return net.kind(name) == "veth"

        return bool(self._in_netns(ask))

    def _attach(self, attachment: Attachment) -> None:
        self._pods.attach_pod(attachment.device, attachment.addresses, pod_mac=attachment.mac)

    def _release(self, key: AttachmentKey) -> None:
        attachment = self._store.get(key)
        if attachment is not None:
            self._pods.detach_pod(attachment.device, attachment.addresses)
            self._pods.detach_pod(attachment.device, ())  # nothing runs there any more, says the runtime
        self._store.remove(key)

    def _add(self, key: AttachmentKey, told: Attachment) -> None:
        known = self._store.get(key)
        if known not in (None, told):
            self._release(key)
        self._store.put(key, told)  # first: whatever happens now, DEL finds it
        try:
            self._attach(told)
        except BaseException:
            self._store.remove(key)
            raise

    def _check(self, key: AttachmentKey, told: Attachment) -> None:
        known = self._store.get(key)
        if known is None:
            raise CniError(CniCode.UNKNOWN_CONTAINER, "this attachment is not known", key.file)
        if known != told:
            raise CniError(CniCode.DATAPATH, "attached otherwise than prevResult says", f"{known} / {told}")
        self._in_netns(lambda: link_index(known.device))

    def _collect(self, network: str, valid: Iterable[Any]) -> None:
        kept = {(each["containerID"], each["ifname"]) for each in valid}
        for key, _ in self._store:
            if key.network == network and (key.container, key.ifname) not in kept:
                self._release(key)

    def _answer(self, request: dict[str, Any]) -> None:
        command = request["command"]
        if command == "GC":
            return self._collect(request["network"], request["valid"])
        if command == "STATUS":
            return None
        key = AttachmentKey(request["network"], request["container"], request["ifname"])
        if command == "DEL":
            return self._release(key)
        told = Attachment.of_result(request["result"], key.ifname, self._is_veth)
        return self._add(key, told) if command == "ADD" else self._check(key, told)

    def _try(self, data: bytes) -> dict[str, Any]:
        try:
            self._answer(json.loads(data))
        except CniError as error:
            return error.as_json()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DatapathError):
                return CniError(CniCode.DATAPATH, "the datapath refuses the pod", str(error)).as_json()
            return CniError(CniCode.DECODING_FAILURE, "a request of another kind", repr(error)).as_json()
        except (DatapathError, OSError) as error:
            return CniError(CniCode.DATAPATH, "the datapath refuses the pod", str(error)).as_json()
        return {}

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            with client:
                try:
                    client.settimeout(_PATIENCE)
                    with client.makefile("rb") as lines:
                        answer = self._try(lines.readline(LONGEST))
                    client.sendall(json.dumps(answer).encode() + b"\n")
                except OSError as error:
                    _log.warning("a CNI request was not answered: %s", error)
                except Exception:  # one request that nobody has thought of must not be the last
                    _log.exception("a CNI request was not answered")

    def close(self) -> None:
        """Stop listening; what is attached stays so."""
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unlink_abandoned(path)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise KernelError("listen at", str(path), error.errno or 0, str(error)) from error
    return listener


def unlink_abandoned(path: Path) -> bool:
    """Remove the socket of an agent that was killed, and nothing else, nor one where somebody answers.

    :returns: whether it was one.
    """
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(_PATIENCE)
        if other.connect_ex(str(path)) != errno.ECONNREFUSED:
            return False
    path.unlink(missing_ok=True)
    return True
