"""The way of a packet through a node, told before it is sent, and what happens then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8sdatapath.lab import Lab
from k8sdatapath.lab.host import Host
from k8sdatapath.model import Frontend, Masquerade, Service
from k8sdatapath.model.policy import Toward

POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-shop, namespace: default}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: shop}}}], ports: [{port: 8080}]}]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    outside = Masquerade(exclude=["10.244.0.0/16", "fd00:10:244::/48"])
    with Lab.start(masquerade=outside, policy=True) as lab:
        for name in ("shop", "cart", "db"):
            lab.pod(name, labels={"app": name}).serve_http(8080, name)
        lab.external("world").serve_http(8080, "world")
        lab.apply(POLICIES)
        yield lab


def pod(lab: Lab, name: str) -> Host:
    return next(each for each in lab.node.pods if each.name == name)


def gets(client: Host, frontend: Frontend, *, timeout: float = 10.0) -> bool:
    where = f"[{frontend.address}]" if frontend.address.version == 6 else frontend.address
    try:
        return client.get(f"http://{where}:{frontend.port}/", timeout=timeout).status == 200
    except OSError:
        return False


@pytest.mark.parametrize("family", [4, 6])
def test_through_service_policy_and_masquerade(lab: Lab, family: int) -> None:
    shop, cart, db = (pod(lab, name) for name in ("shop", "cart", "db"))
    service = Service("10.96.0.10" if family == 4 else "fd00:10:96::10", 80, backends=[db.at(8080, family)])
    lab.node.services.upsert(service)
    node, of = lab.node.datapath, family == 6

    allowed = node.walk(service.frontend, shop.addresses[of])
    assert (allowed.outcome.name, allowed.advice) == ("TO_POD", ())
    assert gets(shop, service.frontend)

    denied = node.walk(service.frontend, cart.addresses[of])
    assert denied.outcome.name == "DROP_POLICY_DENIED"
    (judged,) = (each for each in denied.stages[0].judgements if not each.allowed)
    assert (judged.toward, judged.pod, judged.port) == (Toward.INGRESS, db.addresses[of], 8080)
    (advice,) = denied.advice
    assert advice.startswith(f"Have a policy that selects the pod {db.addresses[of]} allow ingress from ")
    assert advice.endswith("default deny: NetworkPolicy default/only-shop.")
    assert "Nearest: NetworkPolicy default/only-shop" in str(denied)
    assert not gets(cart, service.frontend, timeout=0.5)

    world = Frontend(lab.externals[0].addresses[of], 8080)
    left = node.walk(world, cart.addresses[of])
    assert [each.at.value for each in left.stages] == ["pod", "to-uplink"]
    assert f"under the name of {lab.node.addresses[of]}" in str(left)
    assert gets(cart, world)


def test_what_a_service_lacks_is_advised(lab: Lab) -> None:
    shop = pod(lab, "shop")
    lab.node.services.upsert(Service("10.96.0.11", 80))
    walk = lab.node.datapath.walk
    nobody = walk(Frontend("10.96.0.11", 80), shop.address)
    assert (nobody.outcome.name, len(nobody.advice)) == ("REJECT_NO_BACKEND", 1)
    assert nobody._repr_html_().endswith(
        "<p>Give the service a backend that is ready: it has none for this client.</p>"
    )
    unknown = walk(Frontend("10.96.0.11", 81), shop.address)
    assert unknown.as_dict()["advice"] == ["Dial a port that the service has, or add this one to it."]
    assert unknown.as_dict()["stages"][0]["outcome"] == "REJECT_NO_SERVICE"
