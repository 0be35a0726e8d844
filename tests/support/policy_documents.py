"""Policies as documents of Kubernetes, of which a test writes the part that it is about."""

from __future__ import annotations

from typing import Any

NP = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}}
CNP = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p"}}


def ingress(**rule: Any) -> dict[str, Any]:
    return {"podSelector": {}, "ingress": [rule]}


def rule(section: str = "ingress", **fields: Any) -> dict[str, Any]:
    return {"endpointSelector": {}, section: [fields]}
