"""Two nodes that let only checkout reach payments, and a connection that a change cuts. Run it as root."""

from k8sdatapath import Lab

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: payments, namespace: payments}
spec:
  podSelector: {matchLabels: {app: payments-api}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: frontend}}
      podSelector: {matchLabels: {app: checkout-service}}
    ports: [{port: 8080}]
"""
CLOSED = POLICY[: POLICY.index("  ingress:")]

with Lab.start(nodes=2, routing="vxlan", policy=True) as lab:
    checkout = lab.pod("checkout", labels={"app": "checkout-service"}, namespace="frontend")
    cart = lab.pod("cart", labels={"app": "cart"}, namespace="frontend")
    api = lab.pod("api", lab.nodes[1], labels={"app": "payments-api"}, namespace="payments")
    api.serve_http(8080, "paid")
    lab.apply(POLICY)
    for pod in checkout, cart:
        for url in f"http://{api.address}:8080", f"http://[{api.address6}]:8080":
            try:
                print(f"{pod.name} at {url}: {pod.get(url, timeout=2).text}")
            except TimeoutError:
                print(f"{pod.name} at {url}: nothing")

    with checkout.tcp(api.address, 8080, timeout=1) as connection:
        for existing in "keep", "enforce":
            lab.apply(CLOSED, existing=existing)
            connection.send(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
            try:
                print(f"{existing}: the connection answers {connection.recv(4096)[-4:].decode()}")
            except TimeoutError:
                print(f"{existing}: the connection is silent")

    for count in lab.nodes[1].policy.counts():
        if count.causes and count.packets:
            print(f"{count.action.name} {count.causes[0]}: {count.packets} packets")
