"""An API server as a source of objects."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Self

from attrs import evolve

import k8sdatapath.resource
from k8sdatapath.component import ObjectKey
from k8sdatapath.errors import ClosedError, SourceError
from k8sdatapath.kube.events import Batch, ObjectEvent
from k8sdatapath.kube.patience import Patience
from k8sdatapath.kube.resources import Resource, resource
from k8sdatapath.kube.wire import reader

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from k8sdatapath.kube.follower import Follower, ResourceStatus

__all__ = ["KubeWatch"]


class KubeWatch(k8sdatapath.resource.Resource):
    """What an API server has, and then every change of it::

        with KubeWatch.in_cluster(node="n1") as watch:
            for batch in watch.batches():
                ...

    Every resource is listed in pages and then watched, by a thread each, which start with the first batch
    that is asked for. Whatever happens to the server or the way to it, they go on: what was known stays
    known, and what has changed meanwhile is told once they are through again. An object that is as it was
    is not told anew.

    Every event is told once, to whoever asks first: one consumer is meant.

    :param client: of the official library, configured for the server.
    :param resources: stock names of ``kube.resources.RESOURCES``, or what :class:`Resource` says.
    :param node: of pods, only those on this node.
    :param page_size: objects in one answer to a list; 0: all.
    :param patience: how long is waited for what.
    :raises SourceError: no resource has such a name, or one is given twice.
    """

    def __init__(
        self,
        client: ApiClient,
        resources: Iterable[str | Resource] = ("services", "endpointslices", "nodes"),
        *,
        node: str = "",
        page_size: int = 500,
        patience: Patience | None = None,
    ) -> None:
        from k8sdatapath.kube.connection import ApiServer
        from k8sdatapath.kube.follower import Follower

        self.resources = tuple(resource(each, node) for each in resources)
        self.client = client
        self.server = str(client.configuration.host)
        kinds = [each.kind for each in self.resources]
        if not kinds or len(set(kinds)) < len(kinds):
            raise SourceError(
                f"resources to watch: {', '.join(kinds) or 'none'}: at least one, each kind once"
            )
        patience = patience or Patience()
        self._changed = threading.Condition()
        self._pending: dict[ObjectKey, ObjectEvent] = {}
        self._following: dict[ObjectKey, ObjectEvent] = {}
        """What has to wait for the batch after the next."""
        self._unsynced = {each.kind for each in self.resources}
        self._closed = False
        self._followers: list[Follower] = []
        self._threads: list[threading.Thread] = []
        for each in self.resources:
            follower = Follower(
                each,
                ApiServer(client, patience),
                reader(each, self.server),
                patience,
                page_size,
                self._tell,
                partial(self._synced, each.kind),
            )
            self._followers.append(follower)

    @classmethod
    def in_cluster(
        cls,
        resources: Iterable[str | Resource] = ("services", "endpointslices", "nodes"),
        *,
        node: str = "",
        page_size: int = 500,
        patience: Patience | None = None,
    ) -> Self:
        """With the service account of the pod that this runs in.

        :raises SourceError: it does not run in a pod, or has no service account.
        """
        from kubernetes import client, config

        configuration = client.Configuration()
        try:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError) as error:
            hint = "outside of one, a kubeconfig says where the API server is"
            raise SourceError(f"not in a cluster: {error} ({hint})") from error
        api = client.ApiClient(configuration)
        return cls(api, resources, node=node, page_size=page_size, patience=patience)

    @classmethod
    def from_kubeconfig(
        cls,
        path: str | os.PathLike[str] | None = None,
        context: str | None = None,
        resources: Iterable[str | Resource] = ("services", "endpointslices", "nodes"),
        *,
        node: str = "",
        page_size: int = 500,
        patience: Patience | None = None,
    ) -> Self:
        """As kubectl would connect.

        :param path: None: where kubectl looks, ``$KUBECONFIG`` or ``~/.kube/config``.
        :param context: None: the current one.
        :raises SourceError: there is no such file or context, or it cannot be used.
        """
        import yaml
        from kubernetes import client, config

        configuration = client.Configuration()
        try:
            file = None if path is None else os.fspath(path)
            if file is not None:
                os.stat(file)  # the client takes one that is not there for an empty one
            config.load_kube_config(file, context, configuration)  # type: ignore[no-untyped-call]
        except FileNotFoundError as error:
            raise SourceError(f"{error.filename}: {error.strerror}") from error
        except Exception as error:  # of YAML, of files, of its own: whatever a file can be wrong by
            own = isinstance(error, config.ConfigException | OSError | yaml.YAMLError)
            why = " ".join(str(error).split()) if own else "it is not the mapping that it should be"
            raise SourceError(f"{path or 'kubeconfig'}: cannot be read as a kubeconfig: {why}") from error
        api = client.ApiClient(configuration)
        return cls(api, resources, node=node, page_size=page_size, patience=patience)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "synced" if self.synced else "not synced"
        return f"<KubeWatch {self.server} {' '.join(each.plural for each in self.resources)}, {state}>"

    @property
    def synced(self) -> bool:
        """Whether every resource has been listed completely at least once."""
        return not self._unsynced

    @property
    def status(self) -> Mapping[str, ResourceStatus]:
        """How it goes with each resource, by the plural of its kind: for health and metrics."""
        return {each.resource.plural: evolve(each.status) for each in self._followers}

    def batches(self, timeout: float | None = None) -> Iterator[Batch]:
        """What there is, then what changes, until :meth:`close`.

        :param timeout: seconds after which an empty batch comes, if nothing has happened.
        :raises ClosedError: it was closed before.
        """
        self._start()
        told = False
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda told=told: self._pending or self._closed or told != self.synced,  # type: ignore[misc]
                    timeout,
                )
                if self._closed:
                    return
                events, told = tuple(self._pending.values()), self.synced
                self._pending, self._following = self._following, {}
            yield Batch(events, told)

    def close(self) -> None:
        """End the threads, whatever they wait for, and the iteration; from any thread, more than once."""
        with self._changed:
            self._closed = True
            self._pending.clear()
            self._following.clear()
            self._changed.notify_all()
        for follower in self._followers:
            follower.close()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        with self._changed:
            if self._closed:
                raise ClosedError(f"{self!r} was closed")
            if self._threads:
                return
            for each in self._followers:
                name = f"kd-watch-{each.resource.plural}"
                self._threads.append(threading.Thread(target=each.run, name=name, daemon=True))
            for thread in self._threads:
                thread.start()

    def _tell(self, events: list[ObjectEvent]) -> None:
        with self._changed:
            pending, following = self._pending, self._following
            for each in events:
                key = each.key
                # what was last known of an object that cannot be read holds, but not if it is of one that has
                # gone before: then the later event is not enough
                if key in following or (each.error is not None and _tells_gone(pending.get(key))):
                    following[key] = each
                else:
                    pending[key] = each
            self._changed.notify_all()

    def _synced(self, kind: str) -> None:
        with self._changed:
            self._unsynced.discard(kind)
            self._changed.notify_all()


def _tells_gone(event: ObjectEvent | None) -> bool:
    return event is not None and event.object is None and event.error is None
