"""What may be wished for of masquerading, and how it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from k8sdatapath.errors import ModelError
from k8sdatapath.model import Masquerade, Protocol
from k8sdatapath.model.masquerade import helped


def test_ports_may_be_written_as_people_write_them() -> None:
    given = [21, "69/udp", "21/TCP", (Protocol.UDP, 5060), "5060"]
    assert Masquerade(netfilter=given).netfilter == (
        (Protocol.TCP, 21),
        (Protocol.UDP, 69),
        (Protocol.TCP, 5060),
        (Protocol.UDP, 5060),
    )


def test_families_are_said_once() -> None:
    assert Masquerade(link_local=[6, 4, 6]).link_local == (4, 6)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"netfilter": "21/TCP"}, "a list of ports is wanted"),
        ({"netfilter": [0]}, "0 is no port, as in 21/TCP"),
        ({"netfilter": ["ftp"]}, "'ftp' is no port, as in 21/TCP"),
        ({"netfilter": ["21/ICMP"]}, "'21/ICMP' is no port"),
        ({"netfilter": ["/TCP"]}, "'/TCP' is no port"),
        ({"link_local": [5]}, "families of addresses are 4 and 6"),
        ({"exclude": "10.0.0.0/8"}, "a list of networks is wanted"),
        ({"sources": ["192.0.2.1"]}, "sources is a mapping of devices to addresses, not ['192.0.2.1']"),
        ({"egress": "10.1.1.1"}, "egress is a mapping of pods to addresses, not '10.1.1.1'"),
        ({"sources": {"eth0": ["192.0.2.1", "192.0.2.2"]}}, "one source address of each family"),
        ({"egress": {"10.1.1.1": "2001:db8::1"}}, "which is of the other family"),
        ({"egress": {"10.1.1.0/24": "192.0.2.1", "10.1.1.5/24": "192.0.2.2"}}, "names some pods twice"),
        ({"egress": {"10.1.1.1": "0.0.0.0"}}, "nothing leaves as 0.0.0.0"),
        ({"egress": {"fd00::1": "::"}}, "nothing leaves as ::"),
        ({"sources": {"eth0": ["127.0.0.1"]}}, "nothing leaves as 127.0.0.1"),
        ({"sources": {"eth0": "ff02::1"}}, "nothing leaves as ff02::1"),
        ({"egress": {"10.1.1.1": "192.0.2.1"}, "routable": ["10.1.1.1"]}, "cannot both keep its address"),
    ],
)
def test_what_cannot_be_is_refused(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as refused:
        Masquerade(**wish)
    assert message in str(refused.value)


def test_which_ports_are_of_protocols_that_need_a_helper() -> None:
    assert helped(Protocol.TCP, 21) == "FTP in active mode"
    assert helped(Protocol.UDP, 69) == "TFTP"
    assert helped(Protocol.UDP, 21) == helped(Protocol.TCP, 443) == helped(1, 0) == ""
