"""Serve the flows of a lab in Hubble's protocol, and ask for what was dropped, as its clients do."""

from k8sdatapath import Lab, Service
from k8sdatapath.hubble import HubbleServer, ServerOptions
from k8sdatapath.hubble.client import Asked, Observed
from k8sdatapath.model.flow import Verdict
from k8sdatapath.model.flow_filter import FlowFilter

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: shop}
spec: {podSelector: {matchLabels: {app: backend}}, policyTypes: [Ingress]}
"""


def main() -> None:
    with Lab.start(policy=True, flows="aggregated") as lab:
        backend = lab.pod("backend-0", namespace="shop", labels={"app": "backend"})
        frontend = lab.pod("frontend-0", namespace="shop", labels={"app": "frontend"})
        backend.serve_http(8080, "hello")
        lab.node.services.upsert(Service("10.96.0.10", 80, name="shop/backend", backends=[backend.at(8080)]))
        lab.apply(POLICY)
        try:
            frontend.get("http://10.96.0.10", timeout=1)
        except OSError as error:
            print("frontend:", error)
        with (
            HubbleServer(lab.node.flows, ServerOptions(listen=("127.0.0.1:0",))) as server,
            Observed(server.addresses[0]) as observed,
        ):
            dropped = FlowFilter(verdict=(Verdict.DROPPED,), source_pod=("shop/frontend",))
            for event in observed.flows(Asked(allow=(dropped,), number=1)):
                flow = event.response
                print(flow.source.pod_name, "->", flow.destination_service.name, flow.drop_reason.name)


if __name__ == "__main__":
    main()
