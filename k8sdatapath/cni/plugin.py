"""``k8sdatapath-cni``: one run per pod that comes, goes or is checked."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

from k8sdatapath.cni.protocol import DEFAULT_SOCKET, LONGEST, VERSIONS, CniCode, CniError

__all__ = ["main", "run"]

_PATIENCE = 30.0
"""Seconds that the agent has to answer."""

#: What each command needs in its environment; ADD, CHECK and DEL also need ``cniVersion`` and ``name``.
_NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_IFNAME = re.compile(r"[^/:\s]{1,15}")  # as the kernel has it
_SINCE_1_1 = ("GC", "STATUS")


def main() -> int:
    """The command: configuration on stdin, the rest in the environment, the result on stdout."""
    config: Any = None
    try:
        text = sys.stdin.read(LONGEST + 1)
        config = _config(text)
        answer = run(os.environ, config)
    except CniError as error:
        version = config.get("cniVersion") if isinstance(config, dict) else None
        known = version if version in VERSIONS else VERSIONS[-1]
        print(json.dumps({"cniVersion": known, **error.as_json()}))
        return 1
    if answer is not None:
        print(json.dumps(answer))
    return 0


def run(environment: Mapping[str, str], config: dict[str, Any]) -> dict[str, Any] | None:
    """Do what the environment asks for; returns what goes to stdout.

    :raises CniError: it cannot be done.
    """
    command = environment.get("CNI_COMMAND", "")
    if command == "VERSION":
        return {"cniVersion": VERSIONS[-1], "supportedVersions": list(VERSIONS)}
    if command not in _NEEDS:
        raise CniError(CniCode.INVALID_ENVIRONMENT, "unknown CNI_COMMAND", repr(command))
    version = _version(config, command)
    network = _identifier(config.get("name"), "name", CniCode.INVALID_CONFIG)
    request: dict[str, Any] = {"command": command, "network": network}
    missing = [name for name in _NEEDS[command] if not environment.get(name)]
    if missing:
        raise CniError(CniCode.INVALID_ENVIRONMENT, f"{command} needs", " and ".join(missing))
    if "CNI_CONTAINERID" in _NEEDS[command]:
        bad = CniCode.INVALID_ENVIRONMENT
        request["container"] = _identifier(environment["CNI_CONTAINERID"], "CNI_CONTAINERID", bad)
        request["ifname"] = _ifname(environment["CNI_IFNAME"])
        request["netns"] = environment.get("CNI_NETNS", "")
    if command in ("ADD", "CHECK"):
        request["result"] = _previous(config, command)
    if command == "GC":
        request["valid"] = _valid(config)
    _ask(str(config.get("socket", DEFAULT_SOCKET)), request)
    return {**config["prevResult"], "cniVersion": version} if command == "ADD" else None


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise CniError(CniCode.DECODING_FAILURE, "the configuration is not JSON", str(error)) from None
    if not isinstance(config, dict):
        raise CniError(CniCode.DECODING_FAILURE, "the configuration is not a JSON object")
    return config


def _version(config: dict[str, Any], command: str) -> str:
    version = config.get("cniVersion")
    if version not in VERSIONS or (command in _SINCE_1_1 and version == "1.0.0"):
        can = VERSIONS[1:] if command in _SINCE_1_1 else VERSIONS
        raise CniError(
            CniCode.INCOMPATIBLE_VERSION, f"{command} of cniVersion {version!r}", f"this can {', '.join(can)}"
        )
    return str(version)


def _identifier(value: object, name: str, code: CniCode) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise CniError(code, f"{name} must be letters, digits, '_', '.' and '-'", repr(value))
    return value


def _ifname(value: str) -> str:
    """An interface's name; it becomes part of the name of a file."""
    if not _IFNAME.fullmatch(value) or value in (".", ".."):
        raise CniError(CniCode.INVALID_ENVIRONMENT, "CNI_IFNAME is no name of an interface", repr(value))
    return value


def _previous(config: dict[str, Any], command: str) -> dict[str, Any]:
    previous = config.get("prevResult")
    if not isinstance(previous, dict):
        hint = "put k8sdatapath-cni behind the plugin that makes the pod's devices"
        raise CniError(CniCode.INVALID_CONFIG, f"{command} without prevResult", hint)
    return previous


def _valid(config: dict[str, Any]) -> list[Any]:
    """What a runtime must tell with GC; without it, to let go of all would be a guess."""
    valid = config.get("cni.dev/valid-attachments")
    if not isinstance(valid, list):
        raise CniError(CniCode.INVALID_CONFIG, "GC needs cni.dev/valid-attachments, a list", repr(valid))
    return valid


def _ask(path: str, request: dict[str, Any]) -> None:
    """Let the agent do it.

    When there is none, a pod that goes is let go: with its devices goes all that was made for it, and the
    next agent puts its notes in order. What comes has to wait.
    """
    try:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(_PATIENCE)
            agent.connect(path)
            agent.sendall(json.dumps(request).encode() + b"\n")
            agent.shutdown(socket.SHUT_WR)
            with agent.makefile("rb") as answers:
                refusal = _refusal(json.loads(answers.read(LONGEST)))
    except (OSError, ValueError, LookupError, TypeError) as error:
        if request["command"] in ("DEL", "GC"):
            return
        late = request["command"] == "STATUS"
        code = CniCode.NOT_AVAILABLE if late else CniCode.TRY_AGAIN_LATER
        raise CniError(code, f"no agent answers at {path}", str(error)) from None
    if refusal is not None:
        raise refusal


def _refusal(answer: Any) -> CniError | None:
    """What the agent has against it."""
    return CniError(CniCode(answer["code"]), answer["msg"], answer["details"]) if answer else None
