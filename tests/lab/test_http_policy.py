"""HTTP policy end to end: from a CiliumNetworkPolicy to what curl is told by a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from k8sdatapath import Lab
from k8sdatapath.lab.host import Host
from tests.api.graph import ROOT
from tests.lab.test_docs import blocks, run
from tests.support.http_servers import serving

pytestmark = pytest.mark.lab

PAYMENTS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: payments-api
  namespace: payments
spec:
  endpointSelector:
    matchLabels:
      app: payments-api
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: checkout-service
        io.kubernetes.pod.namespace: frontend
    toPorts:
    - ports:
      - port: "8080"
        protocol: TCP
      rules:
        http:
        - method: POST
          path: /charge
"""
OPEN = json.dumps(
    {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "ops", "namespace": "payments"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "payments-api"}},
            "ingress": [
                {
                    "fromEndpoints": [
                        {"matchLabels": {"app": "ops", "io.kubernetes.pod.namespace": "frontend"}}
                    ]
                }
            ],
        },
    }
)


def curl(client: Host, url: str, *options: str, patience: int = 10) -> str:
    """The status, 000 if there is none for so many seconds."""
    command = ["curl", "-s", "-m", str(patience), "-o", "/dev/null", "-w", "%{http_code}", *options, url]
    return client.exec(command).stdout


def test_checkout_may_charge_and_nothing_else(tmp_path: Path) -> None:
    with Lab.start(policy=True, l7=True) as lab:
        checkout, cart, ops = (
            lab.pod(name, labels={"app": app}, namespace="frontend")
            for name, app in (("checkout", "checkout-service"), ("cart", "cart"), ("ops", "ops"))
        )
        api = lab.pod("api", labels={"app": "payments-api"}, namespace="payments")
        lab.apply(PAYMENTS, OPEN)
        with serving("nginx", api, tmp_path) as server:
            at = f"http://{api.address}:8080"
            assert curl(checkout, f"{at}/charge", "-X", "POST", "-d", "amount=17") == "200"
            assert curl(checkout, f"{at}/charge") == "403"
            assert curl(checkout, f"{at}/refund", "-X", "POST", "-d", "amount=17") == "403"
            assert curl(cart, f"{at}/charge", "-X", "POST", patience=1) == "000"
            assert curl(ops, f"{at}/charge") == "200"
            assert curl(ops, f"{at}/charge", "--http2-prior-knowledge") != "403"
        seen = [request for requests in server.seen().values() for request in requests]
        assert seen == [("POST", "/charge"), ("GET", "/charge")]
        denied = [str(event) for event in lab.node.datapath.l7.events() if event.verdict == "denied"]
        assert denied == ["GET /charge denied: NO_RULE", "POST /refund denied: NO_RULE"]


def test_the_how_to() -> None:
    ((code, output),) = blocks(ROOT / "docs/how-to/l7.md")
    assert run(code, {}) == output
