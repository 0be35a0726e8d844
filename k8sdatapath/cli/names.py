"""Pods and services on the command line, by address or by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define

from k8sdatapath.errors import ModelError
from k8sdatapath.model import Frontend, IPAddress, Protocol, address

if TYPE_CHECKING:
    from k8sdatapath.kube.directory import Directory

__all__ = ["Names"]

_A_CLIENT_PORT = 40000

_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_POD = re.compile(rf"{_LABEL}/[a-z0-9.-]+")
_POD_PORT = re.compile(rf"({_LABEL}/[a-z0-9.-]+):(\d+)")
_SERVICE = re.compile(rf"(?:svc|service)/(?:({_LABEL})/)?({_LABEL}):([a-z0-9-]+)")


@define(slots=False)
class Names:
    """Reads addresses as they are, and looks up names: ``shop/web-1``, ``svc/shop/web:80``.

    :ivar sources: files and directories of manifests.
    :ivar kubeconfig: of the cluster to ask, instead of ``sources``.
    """

    sources: Iterable[Path]
    kubeconfig: Path | None
    _namespace: str = "default"

    @cached_property
    def _directory(self) -> Directory:
        from k8sdatapath.kube.directory import Directory
        from k8sdatapath.kube.static_source import StaticSource
        from k8sdatapath.kube.watch import KubeWatch

        if self.kubeconfig is not None:
            with KubeWatch.from_kubeconfig(self.kubeconfig, None, ("pods", "services")) as watch:
                return Directory.read(watch)
        if not self.sources:
            raise ModelError(
                "a name needs a place to look it up: --kubeconfig FILE, or --source PATH of manifests"
            )
        with StaticSource(*self.sources) as source:
            return Directory.read(source)

    def sender(self, text: str, version: int) -> tuple[IPAddress, int]:
        """Who sends: ``ADDRESS[:PORT]``, IPv6 with a port in brackets, or ``NAMESPACE/POD``.

        :param version: the family, of a pod that has both.
        """
        if _POD.fullmatch(text):
            self._namespace = text.partition("/")[0]
            return self._directory.pod(text, version), _A_CLIENT_PORT
        with suppress(ModelError):
            return address(text), _A_CLIENT_PORT
        with suppress(ModelError):
            frontend = Frontend.parse(text)
            return frontend.address, frontend.port
        raise ModelError(f"{text!r} is no sender: write 10.244.1.2, 10.244.1.2:40000 or NAMESPACE/POD")

    def dialled(self, text: str, protocol: Protocol | None, version: int) -> Frontend:
        """What is dialled.

        ``ADDRESS:PORT[/PROTOCOL]``, ``NAMESPACE/POD:PORT`` or ``svc/[NAMESPACE/]NAME:PORT``.

        A service without namespace is in that of the sender.

        :param version: the family, of what has addresses of both.
        """
        if found := _SERVICE.fullmatch(text):
            name = f"{found[1] or self._namespace}/{found[2]}"
            return self._directory.service(name, found[3], protocol, version)
        if found := _POD_PORT.fullmatch(text):
            pod = self._directory.pod(found[1], version)
            return Frontend(pod, int(found[2]), protocol or Protocol.TCP)
        try:
            frontend = Frontend.parse(text)
        except ModelError as error:
            raise ModelError(f"{error}, NAMESPACE/POD:PORT or svc/[NAMESPACE/]NAME:PORT") from None
        return frontend if protocol is None else Frontend(frontend.address, frontend.port, protocol)
