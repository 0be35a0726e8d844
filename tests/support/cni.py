"""What a container runtime gives a CNI plugin."""

from __future__ import annotations

from typing import Any

#: As ``bridge`` leaves it.
RESULT: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "veth1", "mac": "02:00:00:00:00:02"},
        {"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/c1"},
    ],
    "ips": [{"address": "10.1.0.5/24", "interface": 2}, {"address": "fd01::5/64", "interface": 2}],
}


def environment(command: str, *, container: str = "c1", netns: str = "/run/netns/c1") -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni",
    }


def config(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "pods", "type": "k8sdatapath-cni"} | more
