"""The CNI plugin as a container runtime meets it: environment and configuration in, JSON out."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from k8sdatapath.cni import plugin
from k8sdatapath.cni.attachment import Attachment, AttachmentKey, AttachmentStore
from k8sdatapath.cni.protocol import CniCode, CniError
from k8sdatapath.cni.server import CniServer
from k8sdatapath.errors import DeviceGoneError, KernelError, MapFullError
from tests.support.cni import RESULT, config, environment


class Pods:
    """Remembers what a node that enforces policies would have: devices stay until they are let go."""

    def __init__(self) -> None:
        self.attached: dict[str, tuple[Any, ...]] = {}
        self.refuses: Exception | None = None

    def attach_pod(self, device: str, addresses: Any, *, pod_mac: str) -> None:
        if self.refuses:
            raise self.refuses
        self.attached[device] = (pod_mac, *map(str, addresses))

    def detach_pod(self, device: str, addresses: Any) -> None:
        if addresses:
            self.attached[device] = ()
        else:
            self.attached.pop(device, None)


class Server(CniServer):
    """Takes names for kinds: there are no devices here."""

    def _is_veth(self, name: str) -> bool:
        return name.startswith("veth")

    def _in_netns(self, function: Any) -> Any:
        return None


@pytest.fixture
def pods() -> Pods:
    return Pods()


@pytest.fixture
def server(tmp_path: Path, pods: Pods) -> Iterator[CniServer]:
    with Server(pods, socket=tmp_path / "run" / "cni.sock", state=tmp_path / "pods") as server:
        yield server


def run(server: CniServer, command: str, **more: Any) -> Any:
    return plugin.run(environment(command), config(socket=str(server.path), **more))


def refused(code: CniCode, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(CniError) as caught:
        plugin.run(*args, **kwargs)
    assert caught.value.code is code
    return str(caught.value)


def test_a_pod_comes_is_checked_and_goes(server: CniServer, pods: Pods) -> None:
    assert run(server, "ADD", prevResult=RESULT) == {**RESULT, "cniVersion": "1.1.0"}
    assert pods.attached == {"veth1": ("02:00:00:00:00:05", "10.1.0.5", "fd01::5")}
    assert run(server, "CHECK", prevResult=RESULT) is None
    assert run(server, "DEL", prevResult=RESULT) is None
    assert pods.attached == {}
    assert run(server, "DEL") is None  # again, and without a result: as if it had been there
    assert server.attachments == {}


def test_what_was_attached_otherwise_fails_the_check(server: CniServer) -> None:
    run(server, "ADD", prevResult=RESULT)
    other = RESULT | {"ips": [{"address": "10.1.0.6/32", "interface": 2}]}
    with pytest.raises(CniError, match="otherwise"):
        run(server, "CHECK", prevResult=other)
    run(server, "DEL")
    with pytest.raises(CniError, match="not known"):
        run(server, "CHECK", prevResult=RESULT)


def test_garbage_collection_leaves_what_is_valid(server: CniServer, pods: Pods) -> None:
    run(server, "ADD", prevResult=RESULT)
    keep = [{"containerID": "c1", "ifname": "eth0"}]
    run(server, "GC", **{"cni.dev/valid-attachments": keep})
    assert list(pods.attached) == ["veth1"]
    run(server, "GC", name="another-network", **{"cni.dev/valid-attachments": []})
    assert list(pods.attached) == ["veth1"]
    run(server, "GC", **{"cni.dev/valid-attachments": []})
    assert pods.attached == {}


def test_another_agent_knows_its_pods_and_drops_those_that_went(tmp_path: Path, pods: Pods) -> None:
    places = {"socket": tmp_path / "cni.sock", "state": tmp_path / "pods"}
    with Server(pods, **places) as server:
        run(server, "ADD", prevResult=RESULT)
    pods.attached.clear()
    with Server(pods, **places):
        assert list(pods.attached) == ["veth1"]
    pods.refuses = DeviceGoneError("attach", "veth1", 19)
    with Server(pods, **places) as server:
        assert server.attachments == {}


def test_a_datapath_that_refuses_leaves_no_note(server: CniServer, pods: Pods) -> None:
    pods.refuses = MapFullError("update", "kd_endpoints", 1)
    with pytest.raises(CniError, match="kd_endpoints") as caught:
        run(server, "ADD", prevResult=RESULT)
    assert caught.value.code is CniCode.DATAPATH
    assert server.attachments == {}


def test_without_an_agent_what_comes_waits_and_what_goes_goes(tmp_path: Path) -> None:
    nobody = str(tmp_path / "nobody.sock")
    wanted = config(socket=nobody, prevResult=RESULT)
    refused(CniCode.TRY_AGAIN_LATER, environment("ADD"), wanted)
    refused(CniCode.TRY_AGAIN_LATER, environment("CHECK"), wanted)
    refused(CniCode.NOT_AVAILABLE, environment("STATUS"), wanted)
    assert plugin.run(environment("DEL"), wanted) is None
    assert plugin.run(environment("GC"), {**wanted, "cni.dev/valid-attachments": []}) is None


@pytest.mark.parametrize(
    ("command", "changed", "code"),
    [
        ("ADD", {"cniVersion": "0.4.0"}, CniCode.INCOMPATIBLE_VERSION),
        ("GC", {"cniVersion": "1.0.0"}, CniCode.INCOMPATIBLE_VERSION),
        ("GC", {}, CniCode.INVALID_CONFIG),  # not said which are valid is not to say that none is
        ("GC", {"cni.dev/valid-attachments": None}, CniCode.INVALID_CONFIG),
        ("ADD", {"name": "a/b"}, CniCode.INVALID_CONFIG),
        ("ADD", {"prevResult": None}, CniCode.INVALID_CONFIG),
        ("ADD", {"prevResult": {"interfaces": 7}}, CniCode.INVALID_CONFIG),
        ("ADD", {"prevResult": {}}, CniCode.NO_DEVICE),
        ("ADD", {"prevResult": RESULT | {"ips": []}}, CniCode.NO_DEVICE),
        ("ADD", {"prevResult": RESULT | {"interfaces": RESULT["interfaces"][2:]}}, CniCode.NO_DEVICE),
        ("MAKE", {}, CniCode.INVALID_ENVIRONMENT),
    ],
)
def test_what_cannot_be_is_told_by_number(
    server: CniServer, pods: Pods, command: str, changed: dict[str, Any], code: CniCode
) -> None:
    asked = config(socket=str(server.path), prevResult=RESULT) | changed
    refused(code, environment(command), asked)
    assert pods.attached == {}
    assert server.attachments == {}


def test_two_devices_are_not_guessed_between(server: CniServer) -> None:
    two = RESULT | {"interfaces": [*RESULT["interfaces"], {"name": "veth9"}]}
    with pytest.raises(CniError, match="it tells 2: interfaces of the node: cni0, veth1, veth9"):
        run(server, "ADD", prevResult=two)


def test_names_that_are_paths_are_refused() -> None:
    refused(CniCode.INVALID_ENVIRONMENT, environment("DEL") | {"CNI_CONTAINERID": "../../x"}, config())
    for name in ("../../x", "..", "a b", "sixteen-letters-"):
        refused(CniCode.INVALID_ENVIRONMENT, environment("DEL") | {"CNI_IFNAME": name}, config())


@pytest.mark.parametrize(
    ("command", "text", "code"),
    [
        ("ADD", "{", CniCode.DECODING_FAILURE),
        ("ADD", "[]", CniCode.DECODING_FAILURE),
        ("ADD", "[" * 200_000, CniCode.DECODING_FAILURE),
        ("", "", 4),
    ],
)
def test_the_command_prints_errors_as_the_specification_has_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, text: str, code: int
) -> None:
    for name, value in environment(command).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert plugin.main() == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["code"], printed["cniVersion"]) == (code, "1.1.0")
    assert printed["msg"]


def test_versions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CNI_COMMAND", "VERSION")
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"cniVersion": "0.1.0"}'))
    assert plugin.main() == 0
    assert json.loads(capsys.readouterr().out)["supportedVersions"] == ["1.0.0", "1.1.0"]


def test_notes_that_cannot_be_read_count_as_none(tmp_path: Path) -> None:
    store = AttachmentStore(tmp_path / "pods")
    good, bad = (AttachmentKey("net", container, "eth0") for container in ("good", "bad"))
    told = Attachment("veth1", "02:00:00:00:00:05", (ip_address("10.1.0.5"),))
    store.put(good, told)
    (store.directory / bad.file).write_text('{"device": ')
    assert dict(store) == {good: told}


def test_only_an_abandoned_socket_makes_room(tmp_path: Path, pods: Pods) -> None:
    path = tmp_path / "cni.sock"
    places = {"socket": path, "state": tmp_path / "pods"}
    path.write_text("precious")
    with pytest.raises(KernelError, match=r"listen at: .*cni\.sock: Address already in use"):
        Server(pods, **places)
    assert path.read_text() == "precious"
    path.unlink()
    with Server(pods, **places) as server:
        with pytest.raises(KernelError, match="in use"):
            Server(pods, **places)
        assert run(server, "STATUS") is None
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with Server(pods, **places) as server:
        assert run(server, "STATUS") is None


def test_notes_go_and_what_others_have_put_there_stays(tmp_path: Path) -> None:
    store = AttachmentStore(tmp_path / "pods")
    key = AttachmentKey("pods", "c1", "eth0")
    store.put(key, Attachment("veth1", "02:00:00:00:00:05", (ip_address("10.1.0.5"),)))
    precious = store.directory / "precious"
    precious.touch()
    assert not store.clear()
    assert list(store.directory.iterdir()) == [precious]
    precious.unlink()
    assert store.clear()
    assert not store.directory.exists()


def test_a_request_that_nobody_thought_of_is_not_the_last(server: CniServer, pods: Pods) -> None:
    pods.refuses = RuntimeError("unforeseen")
    refused(CniCode.TRY_AGAIN_LATER, environment("ADD"), config(socket=str(server.path), prevResult=RESULT))
    pods.refuses = None
    assert server.alive
    assert run(server, "ADD", prevResult=RESULT)


@pytest.mark.parametrize("answer", [b"[1]", b'{"code": 9999, "msg": "", "details": ""}', b"{}}", b""])
def test_an_answer_of_somebody_else_is_none(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "cni.sock"

    def serve() -> None:
        client, _ = listener.accept()
        with client, client.makefile("rb") as lines:
            lines.readline()
            client.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        told = refused(
            CniCode.TRY_AGAIN_LATER, environment("ADD"), config(socket=str(path), prevResult=RESULT)
        )
        thread.join()
    assert "no agent answers at" in told
