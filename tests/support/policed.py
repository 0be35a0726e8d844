"""A node whose agent enforces the policies of an API server, and pods of a shop on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from k8sdatapath.net.netns import NetNs
from tests.support.agents import NodeUnderTest, ask, following
from tests.support.api_double import ApiDouble

WEB, SIX = "10.1.1.3", "fd00:1:1::3"


@contextmanager
def served(tmp_path: Path, **options: Any) -> Iterator[tuple[NodeUnderTest, ApiDouble]]:
    with following(tmp_path, policy=True, **options) as (node, api):
        api.put("namespaces", {"metadata": {"name": "shop"}})
        yield node, api


def a_pod(
    name: str, last: int, number: int = 1, *, addresses: Sequence[str] = (), **labels: str
) -> dict[str, Any]:
    addresses = addresses or (f"10.1.{number}.{last}", f"fd00:1:{number}::{last}")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": name} | labels},
        "spec": {"nodeName": f"node-{number}", "containers": []},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": each} for each in addresses],
        },
    }


def put_pod(api: ApiDouble, *where: Any, **labels: Any) -> None:
    api.put("pods", a_pod(*where, **labels))


def only(**labels: str) -> dict[str, Any]:
    """Only who has these labels may reach ``web``."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": labels}}], "ports": [{"port": 8080}]}],
        },
    }


def allow(api: ApiDouble, **labels: str) -> None:
    api.put("networkpolicies", only(**labels))


def reaches(client: NetNs, address: str = WEB, port: int = 8080, who: str = "web") -> bool:
    """Whether somebody answers to the first packet: after a second another one would follow."""
    try:
        return ask(client, address, port, timeout=0.9) == who
    except OSError:
        return False


def both(client: NetNs) -> set[bool]:
    """Whether a client reaches ``web`` over either family, at once."""
    with ThreadPoolExecutor(2) as pool:
        return set(pool.map(lambda address: reaches(client, address), (WEB, SIX)))


def start(node: NodeUnderTest, api: ApiDouble) -> tuple[NetNs, NetNs]:
    """Two clients of a pod that serves."""
    put_pod(api, "client", 2)
    put_pod(api, "web", 3)
    put_pod(api, "other", 4)
    client = node.pod("client", 2)
    node.pod("web", 3)
    other = node.pod("other", 4)
    node.start()
    node.until(lambda: both(client) == both(other) == {True})  # each once its number is known
    return client, other
