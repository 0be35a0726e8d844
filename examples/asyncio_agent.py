"""An agent in asyncio: services follow manifests while the loop is free for other things. Needs root."""

import asyncio
import tempfile
from pathlib import Path

from k8sdatapath import Lab, Reconciler, node_local
from k8sdatapath.kube.static_source import StaticSource

MANIFEST = """
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: [{address}]}}]
"""


async def main() -> None:
    with Lab.start() as lab, tempfile.TemporaryDirectory() as folder:
        client, one, two = (lab.pod(name) for name in ("client", "one", "two"))
        one.serve_http(8080, "one")
        two.serve_http(8080, "two")
        manifest = Path(folder, "web.yaml")
        manifest.write_text(MANIFEST.format(address=one.address))

        reconciler = Reconciler(node_local(StaticSource(folder, interval=0.1)), lab.node.services)
        agent = asyncio.create_task(reconciler.run_async())
        await asyncio.to_thread(reconciler.wait_programmed, ("Service", "default", "web"), 10)
        print("answers:", client.get("http://10.96.0.10").text)

        manifest.write_text(MANIFEST.format(address=two.address))
        while client.get("http://10.96.0.10").text != "two":
            await asyncio.sleep(0.05)
        await asyncio.to_thread(reconciler.wait_programmed, ("EndpointSlice", "default", "web-1"), 10)
        print("and after a change: two")
        for (kind, namespace, name), status in reconciler.statuses().items():
            print(f"{kind} {namespace}/{name} is {status}")

        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)
        print("ended:", reconciler)


asyncio.run(main())
