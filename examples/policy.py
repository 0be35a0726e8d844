"""Who may reach whom by the policies in a file, and which rule says so. Needs neither root nor a cluster."""

from pathlib import Path

from k8sdatapath import PolicySet, Workload
from k8sdatapath.kube.policy import read_policies
from k8sdatapath.model.workload import NamedPort

checkout = Workload.pod("frontend/checkout", {"app": "checkout-service"}, addresses=["10.244.1.2"])
basket = Workload.pod("frontend/basket", {"app": "basket"}, addresses=["10.244.1.3"])
api = Workload.pod(
    "payments/api", {"app": "payments-api"}, addresses=["10.244.2.2"], ports=[NamedPort("http", 8080)]
)

found = read_policies(Path(__file__).parent / "policies" / "payments.yaml")
policies = PolicySet(found, [checkout, basket, api])
for source, destination, port in (
    ("frontend/checkout", "payments/api", 8080),
    ("frontend/checkout", "payments/api", 9090),
    ("frontend/basket", "payments/api", 8080),
    ("payments/api", "198.51.100.7", 443),
    ("payments/api", "198.51.100.200", 443),
    ("frontend/basket", "169.254.169.254", 80),
):
    verdict = policies.verdict(source, destination, port)
    print(f"{source} -> {destination}:{port}: {'yes' if verdict else 'no'}")
    print(f"    {verdict}")
