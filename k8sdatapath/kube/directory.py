"""Directory: the addresses of pods and services by name, as a source has them."""

from __future__ import annotations

import difflib
import time

from attrs import frozen

from k8sdatapath.errors import ModelError, SourceError
from k8sdatapath.kube.events import ObjectSource
from k8sdatapath.kube.objects import KubeObject, KubePod, KubeService
from k8sdatapath.model import Frontend, IPAddress, Protocol

__all__ = ["Directory"]

_PATIENCE = 30.0


@frozen
class Directory:
    """Pods and services by ``NAMESPACE/NAME``."""

    pods: dict[str, KubePod]
    services: dict[str, KubeService]

    @classmethod
    def read(cls, source: ObjectSource, *, timeout: float = _PATIENCE) -> Directory:
        """Everything that a source has now; the source is not closed.

        :param timeout: seconds to wait until it has told everything.
        :raises SourceError: it has not.
        """
        objects: dict[tuple[str, str, str], KubeObject | None] = {}
        wrong: list[str] = []
        until = time.monotonic() + timeout
        for batch in source.batches(timeout=0.2):
            for event in batch.events:
                if event.error is not None:
                    wrong.append(str(event.error))
                else:
                    objects[event.key] = event.object
            if batch.synced:
                break
            if time.monotonic() > until:
                what = f"{source!r} has not told everything in {timeout:g} seconds"
                raise SourceError("; ".join([what, *wrong]))
        pods = {_name(each): each for each in objects.values() if isinstance(each, KubePod)}
        services = {_name(each): each for each in objects.values() if isinstance(each, KubeService)}
        return cls(pods, services)

    def pod(self, name: str, version: int = 4) -> IPAddress:
        """The address of a pod, of the family that is asked for if it has both.

        :raises ModelError: there is no such pod, or it has no address.
        """
        found = self.pods.get(name)
        if found is None:
            raise ModelError(_unknown("pod", name, self.pods))
        if not found.addresses:
            raise ModelError(f"pod {name} has no address yet")
        return _of_family(found.addresses, version)

    def service(self, name: str, port: str, protocol: Protocol | None = None, version: int = 4) -> Frontend:
        """What a client of a service dials.

        :param port: its number, or its name in the service.
        :raises ModelError: there is no such service or port, or it has no address of its own.
        """
        found = self.services.get(name)
        if found is None:
            raise ModelError(_unknown("service", name, self.services))
        if not found.addresses:
            raise ModelError(f"service {name} has no address of its own: dial its pods")
        for each in found.ports:
            if port in (each.name, str(each.number)) and protocol in (None, each.protocol):
                return Frontend(_of_family(found.addresses, version), each.number, each.protocol)
        ports = ", ".join(f"{each.number}/{each.protocol.name} {each.name}".strip() for each in found.ports)
        raise ModelError(f"service {name} has no port {port}: it has {ports or 'none'}")


def _of_family(addresses: tuple[IPAddress, ...], version: int) -> IPAddress:
    return next((each for each in addresses if each.version == version), addresses[0])


def _name(each: KubeObject) -> str:
    return f"{each.namespace}/{each.name}"


def _unknown(kind: str, name: str, known: dict[str, KubePod] | dict[str, KubeService]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    return f"there is no {kind} {name} among {len(known)}{hint}"
