"""Which names a pod may ask for: questions held to a policy, without a proxy. Run it as root."""

from k8sdatapath import Lab

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints: [{matchLabels: {app: dns}}]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules:
        dns: [{matchName: bank.example}, {matchPattern: "*.shop.example"}]
"""
ZONE = "--address=/example/192.0.2.7"

with Lab.start(policy=True, dns=True, flows="all") as lab:
    web = lab.pod("web", labels={"app": "web"}, namespace="shop")
    dns = lab.pod("dns", labels={"app": "dns"}, namespace="shop")
    server = dns.popen(["dnsmasq", "-k", "-C", "/dev/null", "-R", "-h", "-u", "root", "--pid-file", ZONE])
    dig = ["dig", f"@{dns.address}", "+noall", "+comments", "+answer", "+tries=1", "+time=3"]
    while "NOERROR" not in web.exec([*dig, "up.example"]).stdout:
        """There are no policies yet: until the server is up."""
    lab.apply(POLICY)
    told = lab.node.flows.follow(matches=lambda flow: flow.l7)

    for name in ("bank.example", "cart.SHOP.example", "evil.example"):
        said = web.exec([*dig, name]).stdout
        status = said.partition("status: ")[2].partition(",")[0]
        print(f"{name}: {status}, {'192.0.2.7' if '192.0.2.7' in said else 'no address'}")

    for _, flow in zip(range(5), told, strict=False):
        print(f"{flow.source.pod_name} -> {flow.destination.pod_name}: {flow.summary}, {flow.verdict.name}")
    server.terminate()
    server.wait()
