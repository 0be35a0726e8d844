"""A container's interface, as the plugin before us made it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from attrs import frozen

from k8sdatapath.cni.protocol import CniCode, CniError
from k8sdatapath.model import IPAddress, address

__all__ = ["Attachment", "AttachmentKey", "AttachmentStore"]


@frozen
class AttachmentKey:
    """What the specification tells attachments apart by."""

    network: str
    container: str
    ifname: str

    @property
    def file(self) -> str:
        """Where it is noted; none of its parts can hold ``@`` or ``/``, see the specification."""
        return f"{self.network}@{self.container}@{self.ifname}.json"


@frozen
class Attachment:
    """Which device of the node leads to a container's interface, and to which addresses."""

    device: str
    mac: str
    addresses: tuple[IPAddress, ...]

    @classmethod
    def of_result(cls, result: Mapping[str, Any], ifname: str, is_veth: Callable[[str], bool]) -> Attachment:
        """Read a CNI result, whose interfaces without a sandbox are the node's.

        :param is_veth: whether a device of the node is an end of a veth, others being bridges and the like.
        :raises CniError: it does not tell, or it tells of several.
        """
        try:
            return cls._of_result(result, ifname, is_veth)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise CniError(CniCode.INVALID_CONFIG, "prevResult is no CNI result", why) from None

    @classmethod
    def _of_result(cls, result: Mapping[str, Any], ifname: str, is_veth: Callable[[str], bool]) -> Attachment:
        interfaces = result.get("interfaces", [])
        numbers = [n for n, each in enumerate(interfaces) if each.get("sandbox") and each["name"] == ifname]
        if len(numbers) != 1 or not interfaces[numbers[0]].get("mac"):
            raise CniError(CniCode.NO_DEVICE, f"prevResult does not tell the MAC of the container's {ifname}")
        inside = interfaces[numbers[0]]
        on_node = [each["name"] for each in interfaces if not each.get("sandbox")]
        devices = [name for name in on_node if is_veth(name)]
        if len(devices) != 1:
            told = ", ".join(on_node) or "none"
            message = f"prevResult must tell one veth of the node, it tells {len(devices)}"
            raise CniError(CniCode.NO_DEVICE, message, f"interfaces of the node: {told}")
        ips = [each for each in result.get("ips", []) if each.get("interface", numbers[0]) == numbers[0]]
        addresses = tuple(ip_interface(each["address"]).ip for each in ips)
        if not addresses:
            raise CniError(CniCode.NO_DEVICE, f"prevResult tells no address of the container's {ifname}")
        return cls(devices[0], inside["mac"], addresses)


class AttachmentStore:
    """Attachments on disk, each in a file of its own: what DEL and GC have to undo after a restart."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __iter__(self) -> Iterator[tuple[AttachmentKey, Attachment]]:
        for path in sorted(self.directory.glob("*@*@*.json")):
            key = AttachmentKey(*path.name.removesuffix(".json").split("@", 2))
            if found := self.get(key):
                yield key, found

    def get(self, key: AttachmentKey) -> Attachment | None:
        """What is noted of an attachment; a note that cannot be read counts as none."""
        try:
            noted = json.loads((self.directory / key.file).read_text())
            return Attachment(noted["device"], noted["mac"], tuple(map(address, noted["addresses"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: AttachmentKey, attachment: Attachment) -> None:
        """Note an attachment, wholly or not at all."""
        addresses = [str(each) for each in attachment.addresses]
        text = json.dumps({"device": attachment.device, "mac": attachment.mac, "addresses": addresses})
        path = self.directory / key.file
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)

    def remove(self, key: AttachmentKey) -> None:
        """Forget an attachment, if it is known."""
        (self.directory / key.file).unlink(missing_ok=True)

    def clear(self) -> bool:
        """Remove the notes, and the directory with them; whether it is gone, since nothing else was in it."""
        for pattern in ("*@*@*.json", "*@*@*.new"):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)
        try:
            self.directory.rmdir()
        except OSError:
            return False
        return True
