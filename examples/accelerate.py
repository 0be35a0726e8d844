"""Two pods of one node talk past the stack, and a policy still has the last word."""

import time

from k8sdatapath import Accelerated, Lab, Service

ROUNDS = 5000
NOBODY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec: {podSelector: {matchLabels: {app: web}}}
"""

with Lab.start(accelerate=True, policy=True) as lab:
    client, web = lab.pod("client"), lab.pod("web", labels={"app": "web"})
    lab.node.services.upsert(Service("10.96.0.10", 80, backends=[web.at(8080)]))
    accelerator = lab.node.accelerator

    with web.socket() as listener:
        listener.bind(("0.0.0.0", 8080))
        listener.listen()
        for chosen in ((), (Accelerated("10.96.0.10", 80),)):
            accelerator.plan(chosen).apply()
            with client.tcp("10.96.0.10", 80) as asking, listener.accept()[0] as answering:
                started = time.perf_counter()
                for _ in range(ROUNDS):
                    asking.sendall(b"ping")
                    answering.sendall(answering.recv(4))
                    asking.recv(4)
                each = (time.perf_counter() - started) / ROUNDS * 1e6
                print("past the stack:" if chosen else "by the stack:", f"{each:.1f} us a round")
                for pair in accelerator.pairs():
                    print(f"{pair.client.messages + pair.server.messages} messages were on no wire")

                    lab.apply(NOBODY)
                    asking.sendall(b"ping")
                    answering.settimeout(0.2)
                    try:
                        answering.recv(4)
                    except TimeoutError:
                        print("and none gets through that a policy forbids")
