"""A shop of two pods here and one elsewhere, for tests of policies packet by packet."""

from __future__ import annotations

import pytest

from k8sdatapath.model.workload import Workload

WEB = Workload.pod("shop/web", {"app": "web"}, addresses=["10.244.1.2", "fd00:10:244:1::2"])
API = Workload.pod("shop/api", {"app": "api"}, addresses=["10.244.1.3", "fd00:10:244:1::3"])
FAR = Workload.pod("shop/far", {"app": "far"}, addresses=["10.244.2.2", "fd00:10:244:2::2"])
STRANGERS = {4: "198.51.100.7", 6: "2001:db8:7::7"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])

ONLY_WEB = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 8080}, {port: 53, protocol: UDP}]
"""


def at(workload: Workload, family: int) -> str:
    return str(workload.addresses[family == 6])
