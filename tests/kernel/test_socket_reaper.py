"""What a kernel says that cannot destroy sockets, and what a source without sockets is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8sdatapath import features
from k8sdatapath.datapath.socket_reaper import SocketReaper
from k8sdatapath.errors import ContractError, NotSupportedError, VerifierError
from k8sdatapath.objects import Object, ObjectSpec


@pytest.fixture
def sockets() -> Iterator[Object]:
    spec = ObjectSpec.from_file("socket")
    small = {name: 8 for name, definition in spec.maps.items() if definition.max_entries}
    with spec.with_maps(**small).load() as loaded:
        yield loaded


def test_nothing_to_do_is_nothing_done(sockets: Object) -> None:
    with SocketReaper.bind(sockets) as reaper:
        assert reaper.reap(tcp=True) == ()
        assert reaper.reap_everywhere(tcp=True) == ()
    reaper.close()


def test_it_binds_to_maps_by_name(sockets: Object) -> None:
    with SocketReaper.bind(sockets.maps) as reaper:
        assert reaper.reap() == ()


def test_a_source_without_sockets_is_refused() -> None:
    with pytest.raises(ContractError, match=r"a socket reaper needs .*kd_sock"):
        SocketReaper.bind({})


def test_a_kernel_that_cannot_is_named_as_the_cause(sockets: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = VerifierError("reap_udp", "calling kernel function bpf_sock_destroy is not allowed", 22)
    monkeypatch.setattr(ObjectSpec, "load", lambda *_, **__: (_ for _ in ()).throw(refused))
    features.probe.cache_clear()
    try:
        with pytest.raises(NotSupportedError, match="sock_destroy") as error:
            SocketReaper.bind(sockets)
        assert error.value.min_kernel == "6.5"
    finally:
        features.probe.cache_clear()
