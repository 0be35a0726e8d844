"""The server of flows behind TLS: who comes in, and what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from k8sdatapath.errors import ConfigError
from k8sdatapath.flow_source import FlowRing
from k8sdatapath.hubble import HubbleServer, ServerOptions, TlsFiles
from tests.support.hubble_client import ANY, HubbleClient, status


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ca``, and signed by it ``server`` and ``client``; ``other``, and by it ``later``: .crt and .key."""
    home = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, cwd=home, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for ca in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{ca}.key", "-out", f"{ca}.crt", "-subj", f"/CN={ca}")
    for name, ca in (("server", "ca"), ("client", "ca"), ("later", "other")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (home / "names").write_text("subjectAltName=DNS:one.default.hubble-grpc.cilium.io")
        sign = ["-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *sign)
    openssl("ec", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", "locked.key")
    return home


def trusting(home: Path, ca: str = "ca", client: str = "") -> Any:
    pair = [(home / f"{client}.{kind}").read_bytes() if client else None for kind in ("key", "crt")]
    return grpc.ssl_channel_credentials((home / f"{ca}.crt").read_bytes(), *pair)


def test_with_tls_nobody_comes_in_without(certificates: Path) -> None:
    tls = TlsFiles(certificate=certificates / "server.crt", key=certificates / "server.key")
    name = {"grpc.ssl_target_name_override": "one.default.hubble-grpc.cilium.io"}
    with HubbleServer(FlowRing(), ServerOptions(listen=(ANY,), tls=tls)) as server:
        (address,) = server.addresses
        with HubbleClient(address, trusting(certificates), **name) as client:
            assert client.ask("ServerStatus").max_flows == 4095
        with HubbleClient(address) as plain:
            assert status(lambda: plain.ask("ServerStatus"))[0] == "UNAVAILABLE"
        with HubbleClient(address, trusting(certificates, "other"), **name) as mistrusting:
            assert status(lambda: mistrusting.ask("ServerStatus"))[0] == "UNAVAILABLE"
        command = [sys.executable, "-m", "k8sdatapath.cli", "observe", "--server", f"tls://{address}"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        trusted = [*command, "--tls-server-name", name["grpc.ssl_target_name_override"]]
        ca, other = (certificates / f"{each}.crt" for each in ("ca", "other"))
        for files in (
            ["--tls-ca-cert-files", f"{ca},{other}"],
            ["--tls-ca-cert-files", str(ca), "--tls-ca-cert-files", str(other)],
        ):
            assert subprocess.run([*trusted, *files], timeout=60, check=False).returncode == 0, files
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith(f"error: tls://{address} does not tell flows: UNAVAILABLE")


def test_with_mutual_tls_only_known_clients_come_in(certificates: Path) -> None:
    tls = TlsFiles(
        certificate=certificates / "server.crt",
        key=certificates / "server.key",
        clients=certificates / "ca.crt",
    )
    name = {"grpc.ssl_target_name_override": "one.default.hubble-grpc.cilium.io"}
    with HubbleServer(FlowRing(), ServerOptions(listen=(ANY,), tls=tls)) as server:
        (address,) = server.addresses
        with HubbleClient(address, trusting(certificates, client="client"), **name) as client:
            assert client.ask("ServerStatus").max_flows == 4095
        with HubbleClient(address, trusting(certificates), **name) as unknown:
            assert status(lambda: unknown.ask("ServerStatus"))[0] == "UNAVAILABLE"


def test_certificates_that_are_exchanged_are_shown_to_who_comes_next(
    certificates: Path, tmp_path: Path
) -> None:
    tls = TlsFiles(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key")

    def put(name: str) -> None:
        for kind in ("key", "crt"):
            fresh = tmp_path / "fresh"
            fresh.write_bytes((certificates / f"{name}.{kind}").read_bytes())
            fresh.replace(tmp_path / f"tls.{kind}")

    put("server")
    name: dict[str, Any] = {"grpc.ssl_target_name_override": "one.default.hubble-grpc.cilium.io"}
    with HubbleServer(FlowRing(), ServerOptions(listen=(ANY,), tls=tls)) as server:
        (address,) = server.addresses
        with HubbleClient(address, trusting(certificates), **name) as client:
            assert client.ask("ServerStatus").max_flows == 4095
            put("later")
            assert client.ask("ServerStatus").max_flows == 4095, "who is in stays"
        with HubbleClient(address, trusting(certificates, "other"), **name) as client:
            assert client.ask("ServerStatus").max_flows == 4095
        with HubbleClient(
            address, trusting(certificates), **name, **{"grpc.use_local_subchannel_pool": 1}
        ) as old:
            assert status(lambda: old.ask("ServerStatus"))[0] == "UNAVAILABLE"


def test_certificates_that_are_not_there_are_said(tmp_path: Path) -> None:
    tls = TlsFiles(certificate=tmp_path / "no.crt", key=tmp_path / "no.key")
    with pytest.raises(ConfigError, match="cannot be read"):
        HubbleServer(FlowRing(), ServerOptions(listen=(ANY,), tls=tls))


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (("server.crt", "client.key", None), "KEY_VALUES_MISMATCH|key values mismatch"),
        (("server.key", "server.key", None), "cannot be read: "),
        (("server.crt", "server.key", "server.key"), "cannot be read: "),
        (("server.crt", "locked.key", None), "the key is encrypted"),
    ],
)
def test_certificates_that_are_none_are_said(
    certificates: Path, names: tuple[str, str, str | None], wrong: str
) -> None:
    certificate, key, clients = (certificates / each if each else None for each in names)
    assert certificate is not None
    assert key is not None
    tls = TlsFiles(certificate=certificate, key=key, clients=clients)
    with pytest.raises(ConfigError, match=wrong) as caught:
        HubbleServer(FlowRing(), ServerOptions(listen=(ANY,), tls=tls))
    assert caught.value.path == "hubble.tls"
