"""What tests of watching share: objects for the double, and one who listens to a source."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kubernetes.client import ApiClient, Configuration

from k8sdatapath.component import ObjectKey
from k8sdatapath.kube.events import Batch, ObjectEvent, ObjectSource
from k8sdatapath.kube.objects import EndpointSlice, KubeObject, KubeService
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.watch import KubeWatch
from tests.support.api_double import ApiDouble
from tests.support.api_requests import Object

#: Makes watches of the double: of some resources, with options of ``KubeWatch``.
Watch = Callable[..., KubeWatch]

#: Of a server without authentication, whose URL is to be filled in.
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: double
clusters: [{name: double, cluster: {server: "%s"}}]
users: [{name: nobody, user: {}}]
contexts: [{name: double, context: {cluster: double, user: nobody}}]
"""

#: So that tests need not wait long for what takes minutes in life.
HASTY = Patience(connect=0.5, answer=2.0, watch=2.0, silence=1.0, first=0.02, most=0.2, steady=1.0)


def service(name: str, port: int = 80, namespace: str = "default", number: int = 1, **labels: str) -> Object:
    address = f"10.96.{number >> 8}.{number & 255}"
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"port": port}]},
    }


def part(of: str, *addresses: str, name: str = "", namespace: str = "default") -> Object:
    """A slice of a service."""
    return {
        "metadata": {
            "name": name or f"{of}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [each]} for each in addresses],
    }


def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Until something is so, without listening."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def client(double: ApiDouble) -> ApiClient:
    configuration = Configuration()
    configuration.host = double.url
    return ApiClient(configuration)


class Listener:
    """Keeps what a source tells, as a consumer would."""

    def __init__(self, source: ObjectSource) -> None:
        self._batches = source.batches(timeout=0.02)
        self.objects: dict[ObjectKey, KubeObject] = {}
        self.events: list[ObjectEvent] = []
        self.synced = False

    def take(self) -> Batch:
        batch = next(self._batches)
        for each in batch.events:
            self.events.append(each)
            if each.object is not None:
                self.objects[each.key] = each.object
            elif each.error is None:
                self.objects.pop(each.key, None)
        assert batch.synced >= self.synced  # it stays
        self.synced = batch.synced
        return batch

    def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not come about; told: {self.told()}"
            self.take()

    def quiet(self, seconds: float = 0.3) -> None:
        """Nothing is told for so long."""
        told, deadline = len(self.events), time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.take()
        assert self.events[told:] == []

    def forget(self) -> None:
        """What was told until now."""
        self.events.clear()

    def told(self) -> list[str]:
        return [f"{'-' if each.object is None else '+'}{each.kind} {each.name}" for each in self.events]

    def ports(self) -> dict[str, int]:
        """Of the services, by name."""
        found = [each for each in self.objects.values() if isinstance(each, KubeService)]
        return {each.name: each.ports[0].number for each in found}

    def endpoints(self) -> dict[str, set[str]]:
        """Of the slices, by name."""
        found = [each for each in self.objects.values() if isinstance(each, EndpointSlice)]
        return {each.name: {str(one.address) for one in each.endpoints} for each in found}


def ports_of(double: ApiDouble) -> dict[str, int]:
    """What :meth:`Listener.ports` must come to."""
    return {name: each["spec"]["ports"][0]["port"] for (_, name), each in double.objects("services").items()}


def endpoints_of(double: ApiDouble) -> dict[str, set[str]]:
    def addresses(value: Any) -> set[str]:
        return {address for endpoint in value["endpoints"] for address in endpoint["addresses"]}

    return {name: addresses(each) for (_, name), each in double.objects("endpointslices").items()}


def follow(watch: KubeWatch) -> Listener:
    """Listen from where all is listed, and watched."""
    listener = Listener(watch)
    listener.until(lambda: listener.synced)
    listener.until(lambda: all(each.connected for each in watch.status.values()))
    return listener
