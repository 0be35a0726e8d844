"""Every example runs, is short, and prints what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.graph import ROOT

pytestmark = pytest.mark.lab

#: test_kube_proxy and test_kube_docs run them
IN_A_CLUSTER = [ROOT / "examples/kube_proxy.py", ROOT / "examples/watch_services.py"]
EXAMPLES = sorted({*(ROOT / "examples").glob("*.py")} - {*IN_A_CLUSTER})

#: Example -> what it prints, line by line or in part.
PROMISES = {
    "apply_manifests": [
        r"\+ shop/web:http \(10\.96\.0\.10:80/TCP\): 3 backends",
        r"4 added, 0 changed, 0 removed",
        r"and again: 0 to change, 4 as wanted",
    ],
    "asyncio_agent": [
        r"answers: one\nand after a change: two",
        r"Service default/web is programmed\nEndpointSlice default/web-1 is programmed",
        r"ended: <Reconciler ended 1 services>",
    ],
    "catalogue": [
        r"answers: \{'one': \d+, 'two': \d+\}\nanswers: \{'two': 80\}",
        r"status of web: programmed",
        r"slowest change: at most [\d.]+ ms",
    ],
    "enforce_policy": [
        r"checkout at http://10\.244\.2\.2:8080: paid\ncheckout at http://\[fd00:10:244:2::2\]:8080: paid",
        r"cart at http://10\.244\.2\.2:8080: nothing\ncart at http://\[fd00:10:244:2::2\]:8080: nothing",
        r"keep: the connection answers paid\nenforce: the connection is silent",
        r"DENY NetworkPolicy payments/payments: \d+ packets",
    ],
    "conntrack": [
        r"UDP 192\.0\.2\.101:\d+ -> 10\.96\.0\.10:53 -> 10\.244\.1\.3:53 answered",
        r"forgotten now: 0\nforgotten in three minutes: 1",
        r"destroyed: 10\.96\.0\.10:53/UDP at 10\.244\.1\.3:53",
        r"is told: Software caused connection abort\nand reaches two",
    ],
    "l7_policy": [
        r"^checkout POST /charge: paid \(200\)\ncheckout GET /charge: Access denied \(403\)",
        r"checkout POST /charge/\.\./refund: Access denied \(403\)\ncart POST /charge: \(000\)",
        r"two in one packet: 2\n",
        r"GET /charge denied: NO_RULE\nPOST /charge/\.\./refund denied: PATH$",
    ],
    "dns_policy": [
        r"^bank\.example: NOERROR, 192\.0\.2\.7\ncart\.SHOP\.example: NOERROR, 192\.0\.2\.7\n",
        r"evil\.example: REFUSED, no address\nweb -> dns: DNS Query bank\.example\. A, FORWARDED",
        r'dns -> web: DNS Answer "192\.0\.2\.7" TTL: 0 \(bank\.example\. A\), FORWARDED',
        r"web -> dns: DNS Query evil\.example\. A, DROPPED$",
    ],
    "explain": [
        r"10\.96\.0\.10:80/TCP is a cluster IP of service number 0, selection maglev\.",
        r"TO_POD: put into a pod of this node\.",
        r"A process dials 10\.96\.0\.10:80/TCP\.",
        r"another port: REJECT_NO_SERVICE, ",
        r"flows that explaining has made: 0",
    ],
    "flows": [
        r"batch: no answer",
        r"web -> api: TCP Flags: SYN, FORWARDED api",
        r"api -> web: TCP Flags: SYN, ACK, FORWARDED",
        r"batch -> api: TCP Flags: SYN, DROPPED api",
        r"web has sent \d+ packets, or a few more\ndropped at policy\.h: POLICY_DENIED",
    ],
    "identity": [
        r"^\d+\n  k8s:app=web\n",
        r"k8s:io\.kubernetes\.pod\.namespace=shop\n2 \(reserved:world=\)",
        r"0 nodes gone, 0 identities deleted, 0 numbers free",
    ],
    "accelerate": [
        r"by the stack: [\d.]+ us a round",
        r"past the stack: [\d.]+ us a round\n10000 messages were on no wire",
        r"and none gets through that a policy forbids",
    ],
    "follow_policies": [
        r"generation 1: programmed\n  web: paid\n  cart: nothing",
        r"generation 2: programmed\n  web: nothing\n  cart: paid",
    ],
    "hubble_server": [r"frontend: timed out\nfrontend-0 -> backend POLICY_DENIED"],
    "masquerade_alone": [
        r"as itself: True\n\d+ added, 0 changed, 0 removed",
        r"as the node: True\n10\.244\.1\.2 as 192\.0\.2\.11 -> 192\.0\.2\.101:8080\nas itself again: True",
    ],
    "masquerade": [
        r"the world saw 192\.0\.2\.11, which is node 192\.0\.2\.11",
        r"10\.244\.1\.2 left as 192\.0\.2\.11 for 192\.0\.2\.101:8080",
    ],
    "node_port": [
        r"from outside, any pod answers: \['far', 'near'\]",
        r"the client sees \('192\.0\.2\.11', 30080\)",
        r"with externalTrafficPolicy Local: \['near'\]",
        r"it sees its client: 192\.0\.2\.101",
    ],
    "overlay": [
        r"pods in 10\.244\.2\.0/24 fd00:10:244:2::/64 are behind 192\.0\.2\.12",
        r"Counter\(\{'pod[23]': \d+, 'pod[23]': \d+\}\)",
        r"[1-9]\d+ packets went through the tunnel",
    ],
    "own_program": [r"4 packets of protocol 0x0800", r"2 packets of protocol 0x86dd"],
    "policy": [
        r"checkout -> payments/api:8080: yes\n.*ingress allowed by NetworkPolicy payments/api",
        r"checkout -> payments/api:9090: no\n.*NetworkPolicy payments/api isolates",
        r"basket -> payments/api:8080: no\n.*NetworkPolicy payments/api isolates",
        r"198\.51\.100\.7:443: yes\n    egress allowed by CiliumNetworkPolicy payments/bank",
        r"198\.51\.100\.200:443: no",
        r"169\.254\.169\.254:80: no\n    egress denied by ClusterNetworkPolicy metadata .*no metadata",
    ],
    "restart": [
        r"first: 1 added",
        r"nobody runs; pinned are .*kd_backends",
        r"taken over: 10\.96\.0\.10:80/TCP",
        r"wanted is there: True",
    ],
    "service": [
        r"1 added",
        r"answers: Counter\(\{'(one|two)': \d+, '(one|two)': \d+\}\)",
        r"the kernel gave \d+ flows to 10\.244\.1\.3:8080",
    ],
    "simulate": [
        r"<TCP 10\.244\.1\.2:40000 -> 10\.244\.1\.3:8080 \[S\]",
        r"<UDP 10\.244\.1\.2:40000 -> 10\.244\.1\.4:5353",
        r"REDIRECT: <TCP 10\.96\.0\.99:80 -> 10\.244\.1\.2:40000 \[RA\]",
        r"UNSPEC: <TCP 10\.244\.1\.2:40000 -> 192\.0\.2\.1:80",
    ],
    "typed_maps": [
        r"<Hash usage addr->Usage 101/4096>",
        r"of 5051 packets",
        r"removed: 50",
        r"10\.9\.9\.9 is in zone 1\n10\.0\.1\.1 is in zone 2\nfd00::1 is in zone 3",
        r"192\.0\.2\.1 is in zone None",
    ],
}


def test_every_example_makes_a_promise() -> None:
    assert {path.stem for path in EXAMPLES} == PROMISES.keys()


def test_every_example_is_short() -> None:
    for path in (*EXAMPLES, *IN_A_CLUSTER):
        assert len(path.read_text().splitlines()) <= 60, path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_it_promises(path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    for promise in PROMISES[path.stem]:
        assert re.search(promise, ended.stdout), ended.stdout
