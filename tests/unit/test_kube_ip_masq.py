"""ip-masq-agent's configuration: what it means, what is refused, that it is read again when changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8sdatapath.errors import ManifestError
from k8sdatapath.kube import IpMasqConfig, IpMasqFile
from k8sdatapath.kube.ip_masq import RESERVED
from k8sdatapath.model import Masquerade, network


@pytest.mark.parametrize(
    "text",
    [
        """
nonMasqueradeCIDRs:
- 10.0.0.0/8
- fd00::/8
masqLinkLocal: true
masqLinkLocalIPv6: false
resyncInterval: 1m30s
""",
        '{"nonMasqueradeCIDRs": ["10.0.0.0/8", "fd00::/8"], "masqLinkLocal": true, "resyncInterval": "90s"}',
    ],
    ids=["YAML", "JSON"],
)
def test_what_it_says(text: str) -> None:
    config = IpMasqConfig.parse(text)
    assert config.not_masqueraded == (network("10.0.0.0/8"), network("fd00::/8"))
    assert (config.link_local, config.link_local_ipv6, config.resync_interval) == (True, False, 90)
    wanted = config.added_to(Masquerade(devices="eth0", exclude=["192.0.2.0/24"]))
    assert [str(each) for each in wanted.exclude] == ["10.0.0.0/8", "192.0.2.0/24", "fd00::/8"]
    assert (wanted.devices, wanted.link_local) == (("eth0",), (4,))


def test_what_it_says_nothing_of() -> None:
    assert IpMasqConfig.parse("") == IpMasqConfig()
    assert IpMasqConfig.parse("masqLinkLocal: true").not_masqueraded == RESERVED
    assert len(RESERVED) == 11
    assert IpMasqConfig.parse("nonMasqueradeCIDRs: []").not_masqueraded == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonMasqueradeCIDR: []", "nonMasqueradeCIDR: unknown; did you mean 'nonMasqueradeCIDRs'?"),
        ("nonMasqueradeCIDRs: 10.0.0.0/8", "nonMasqueradeCIDRs: '10.0.0.0/8' is not a list"),
        ("nonMasqueradeCIDRs: [10.0.0.1/8]", "nonMasqueradeCIDRs: '10.0.0.1/8' begins in the middle"),
        ("nonMasqueradeCIDRs: [world]", "nonMasqueradeCIDRs: 'world' is not a network"),
        ("nonMasqueradeCIDRs: [5]", "nonMasqueradeCIDRs: 5 is not a network"),
        ("masqLinkLocal: 1", "masqLinkLocal: 1 is neither true nor false"),
        ("resyncInterval: 60", "resyncInterval: 60 is no duration"),
        ("resyncInterval: 1 day", "resyncInterval: '1 day' is no duration"),
        ("resyncInterval: 0s", "resyncInterval: '0s' is no time at all"),
        ("cidrLimit: 1\nnonMasqueradeCIDRs: [10.0.0.0/8, 11.0.0.0/8]", "2 networks, at most 1 may be"),
        ("[]", "one mapping is expected"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as refused:
        IpMasqConfig.parse(text, "masq")
    assert message in str(refused.value)
    assert str(refused.value).startswith("masq: ")


def test_a_file_comes_changes_breaks_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "masq"
    file = IpMasqFile(path)
    assert not file.refresh()
    assert file.config == IpMasqConfig()
    path.write_text("nonMasqueradeCIDRs: [10.0.0.0/8]")
    assert file.refresh()
    assert not file.refresh()
    path.write_text("nonMasqueradeCIDRs: [10.0.0.0/8, oops]")
    with pytest.raises(ManifestError):
        file.refresh()
    assert not file.refresh()  # told once
    assert "oops" in file.problem
    assert file.config.not_masqueraded == (network("10.0.0.0/8"),)
    replaced = tmp_path / "new"
    replaced.write_text("{}")
    replaced.rename(path)
    assert file.refresh()
    assert (file.problem, file.config) == ("", IpMasqConfig())
    path.write_bytes(b"\xff")
    with pytest.raises(ManifestError, match="UTF-8"):
        file.refresh()
    path.unlink()
    assert not file.refresh()
    assert file.problem == ""


def test_as_a_config_map_is_mounted(tmp_path: Path) -> None:
    """The file is a link through another one, which is swapped."""
    for name, text in ("one", "masqLinkLocal: false"), ("two", "masqLinkLocal: true"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config").write_text(text)
    data, path = tmp_path / "..data", tmp_path / "config"
    data.symlink_to("one")
    path.symlink_to("..data/config")
    file = IpMasqFile(path)
    file.refresh()
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").rename(data)
    assert file.refresh()
    assert file.config.link_local
