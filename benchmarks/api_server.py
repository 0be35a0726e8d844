"""An API server with Services and EndpointSlices, in a process of its own: what it costs is not ours.

It takes orders by standard input, a line each::

    prepare NUMBER   encode events of so many slices that change
    send GAP         send them, GAP microseconds apart (0: as fast as it goes)

and answers each when it is done, with the seconds that took.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from urllib.parse import parse_qs, urlsplit

from benchmarks import kubeproxy
from benchmarks.kubeproxy import Service

_FIRST = 1000  # version of what there is at the start


def service_object(service: Service) -> dict[str, object]:
    """As an API server has it, but for fields that its writers manage."""
    namespace, name = service.name.partition(":")[0].split("/")
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"00000000-0000-4000-8000-{service.number:012x}",
            "resourceVersion": str(_FIRST),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": name},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service.vip,
            "clusterIPs": [service.vip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [
                {"name": "http", "protocol": "TCP", "port": kubeproxy.SERVICE_PORT, "targetPort": 8080}
            ],
        },
        "status": {"loadBalancer": {}},
    }


def slice_object(service: Service, version: int = _FIRST) -> dict[str, object]:
    namespace, name = service.name.partition(":")[0].split("/")
    return {
        "metadata": {
            "name": f"{name}-x7k2p",
            "generateName": f"{name}-",
            "namespace": namespace,
            "uid": f"00000000-0000-4000-9000-{service.number:012x}",
            "resourceVersion": str(version),
            "generation": version,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name,
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": name, "controller": True}],
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": service.endpoints[0][1]}],
        "endpoints": [
            {
                "addresses": [ip],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{place}",
                "zone": "zone-a",
                "targetRef": {
                    "kind": "Pod",
                    "namespace": namespace,
                    "name": f"{name}-{place}",
                    "uid": "0" * 36,
                },
            }
            for place, (ip, _) in enumerate(service.endpoints)
        ],
    }


def compact(value: object) -> str:
    """As API servers write it, in lists and in events alike."""
    return json.dumps(value, separators=(",", ":"))


class ApiServer(ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, services: int, endpoints: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.services = list(kubeproxy.services(services, endpoints=endpoints))
        self.lists = {
            "services": [compact(service_object(each)) for each in self.services],
            "endpointslices": [compact(slice_object(each)) for each in self.services],
        }
        self.version = _FIRST
        self.watching = threading.Event()
        self.watch: Handler | None = None
        self.chunks: list[bytes] = []
        self.chance = random.Random(4)

    def prepare(self, number: int) -> None:
        """Replace one endpoint of a service, so often; a second time only when all have had their turn."""
        self.chunks = []
        turns: list[int] = []
        for _ in range(number):
            if not turns:
                turns = self.chance.sample(range(len(self.services)), len(self.services))
            index = turns.pop()
            self.version += 1
            after = kubeproxy.with_other_endpoint(self.services[index], self.version)
            self.services[index] = after
            value = {
                "kind": "EndpointSlice",
                "apiVersion": "discovery.k8s.io/v1",
                **slice_object(after, self.version),
            }
            line = compact({"type": "MODIFIED", "object": value}).encode() + b"\n"
            self.chunks.append(b"%x\r\n%b\r\n" % (len(line), line))

    def send(self, gap: int) -> None:
        """Send the events."""
        self.watching.wait()
        assert self.watch is not None
        write = self.watch.wfile.write
        if not gap:
            for at in range(0, len(self.chunks), 50):
                write(b"".join(self.chunks[at : at + 50]))
            return
        start = time.perf_counter()
        for index, chunk in enumerate(self.chunks):
            wait = start + index * gap / 1e6 - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            write(chunk)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ApiServer

    def log_message(self, *_: object) -> None:
        """Nobody asks."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        plural = url.path.rpartition("/")[2]
        query = {name: last for name, [*_, last] in parse_qs(url.query).items()}
        if query.get("watch"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if plural == "endpointslices":
                self.server.watch = self
                self.server.watching.set()
            threading.Event().wait()
        items = self.server.lists.get(plural, [])
        first, limit = int(query.get("continue", "0")), int(query.get("limit", "0")) or len(items)
        following = f',"continue":"{first + limit}"' if first + limit < len(items) else ""
        body = '{"kind":"List","metadata":{"resourceVersion":"%d"%s},"items":[%s]}'
        data = (body % (_FIRST, following, ",".join(items[first : first + limit]))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    services, endpoints = map(int, sys.argv[1:])
    with ApiServer(services, endpoints) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        for line in sys.stdin:
            order, number = line.split()
            start = time.perf_counter()
            {"prepare": server.prepare, "send": server.send}[order](int(number))
            print(time.perf_counter() - start, flush=True)
        server.shutdown()


if __name__ == "__main__":
    main()
