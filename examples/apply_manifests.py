"""Kubernetes manifests in, a plan, and load-balanced services out. Needs root."""

import sys
from pathlib import Path

from k8sdatapath import Lab, StaticYaml

manifests = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "manifests"
source = StaticYaml(manifests)

with Lab.start() as lab:
    services = lab.node.services

    plan = services.plan(source.read())
    print(plan)
    print(plan.apply())

    print("and again:", services.plan(source.read()))
    for service in services:
        print(service, "->", *service.backends)
