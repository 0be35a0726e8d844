"""Who talks to whom, and why not: flows of a lab, as they come and as a table. Run it as root."""

from k8sdatapath import Lab, Service

ONLY_WEB = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 8080}]
"""

with Lab.start(policy=True, flows="aggregated") as lab:
    web, batch, api = (
        lab.pod(name, namespace="shop", labels={"app": name}) for name in ("web", "batch", "api")
    )
    api.serve_http(8080, "hello")
    lab.node.services.upsert(Service("10.96.0.10", 80, backends=[api.at(8080)], name="shop/api:http"))
    lab.apply(ONLY_WEB)
    follower = lab.node.flows.follow()

    web.get("http://10.96.0.10")
    try:
        batch.get("http://10.96.0.10", timeout=0.5)
    except TimeoutError:
        print("batch: no answer")

    for flow in follower.take(timeout=5):
        if flow.summary.startswith("TCP Flags: SYN"):
            ends = f"{flow.source.pod_name} -> {flow.destination.pod_name}"
            because = ", ".join(each.name for each in (*flow.ingress_allowed_by, *flow.ingress_denied_by))
            print(f"{ends}: {flow.summary}, {flow.verdict.name} {because}".rstrip())

    table = lab.node.flows.to_pandas()
    packets = table.groupby(["source_pod", "destination_pod"])["packets"].max()
    print(f"web has sent {packets['web', 'api']} packets, or a few more")
    drop = lab.node.flows.last(1, matches=lambda flow: flow.drop_reason)[0]
    print(f"dropped at {drop.file.name}: {drop.drop_reason.name}")
