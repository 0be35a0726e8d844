"""Checkout may charge, and nothing else: HTTP policy in the kernel, without a proxy. Run it as root."""

from k8sdatapath import Lab

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: payments, namespace: payments}
spec:
  endpointSelector: {matchLabels: {app: payments-api}}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: checkout-service, io.kubernetes.pod.namespace: frontend}
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules:
        http: [{method: POST, path: /charge}]
"""

with Lab.start(policy=True, l7=True) as lab:
    checkout = lab.pod("checkout", labels={"app": "checkout-service"}, namespace="frontend")
    cart = lab.pod("cart", labels={"app": "cart"}, namespace="frontend")
    api = lab.pod("api", labels={"app": "payments-api"}, namespace="payments")
    api.serve_http(8080, "paid")
    lab.apply(POLICY)

    curl = ["curl", "-s", "-m", "3", "-w", " (%{http_code})"]
    for pod, method, path in (
        (checkout, "POST", "/charge"),
        (checkout, "GET", "/charge"),
        (checkout, "POST", "/charge/../refund"),
        (cart, "POST", "/charge"),
    ):
        url = f"http://{api.address}:8080{path}"
        said = pod.exec([*curl, "--path-as-is", "-X", method, url]).stdout
        print(f"{pod.name} {method} {path}: {' '.join(said.split())}")

    with checkout.tcp(api.address, 8080) as connection:
        connection.send(b"POST /charge HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\n17" * 2)
        answers = b""
        while answers.count(b"paid") < 2 and (more := connection.recv(65536)):
            answers += more
        print("two in one packet:", answers.count(b"200 OK"))

    for event in lab.node.datapath.l7.events():
        print(event)
