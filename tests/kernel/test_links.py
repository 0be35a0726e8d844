"""Programs on their hooks: attached, ordered, updated, pinned, taken off."""

from __future__ import annotations

import errno
import socket
import subprocess
from pathlib import Path

import pytest

from k8sdatapath import maps
from k8sdatapath.errors import ClosedError, DeviceGoneError, KernelError, NotSupportedError, ObjectError
from k8sdatapath.layout import u32, u64
from k8sdatapath.links import After, Before, First, KernelLink, Last
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.pins import PinDir
from k8sdatapath.programs import (
    TC,
    XDP,
    CgroupSkb,
    CgroupSockAddr,
    Direction,
    Iter,
    Netfilter,
    SkLookup,
    SkMsg,
    SkSkb,
    SockOps,
    XdpMode,
)
from k8sdatapath.programs.netfilter import Hook
from k8sdatapath.pybpf import progs
from tests.support.watching import wait

FRAME = b"\xff" * 12 + b"\x08\x00" + bytes(50)
TCX_INGRESS = 46


def order(netns: NetNs, device: str = "left") -> list[int]:
    return netns.call(lambda: progs.query(socket.if_nametoindex(device), TCX_INGRESS))


def send(netns: NetNs, device: str, count: int = 1) -> None:
    def inside() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((device, 0))
            for _ in range(count):
                wire.send(FRAME)

    netns.call(inside)


def counts(kinds: Object) -> list[int]:
    with kinds.map("counts", maps.Array[u64]) as table:
        return list(table)


def counted(kinds: Object, which: int, least: int) -> None:
    """Wait until so much is counted: what was sent comes in when the kernel gets to it."""
    wait(lambda: counts(kinds)[which] >= least)


def test_a_tc_program_sees_every_packet_until_its_link_is_closed(kinds: Object, netns: NetNs) -> None:
    before = counts(kinds)[0]
    with kinds.program("first", TC).attach("left", Direction.INGRESS, netns=netns):
        send(netns, "right", 3)
        counted(kinds, 0, before + 3)
    seen = counts(kinds)[0]
    send(netns, "right", 3)
    assert counts(kinds)[0] == seen
    assert order(netns) == []


def test_programs_on_one_hook_run_in_the_order_asked_for(
    kinds: Object, kinds_spec: ObjectSpec, netns: NetNs
) -> None:
    with kinds_spec.load() as more:
        a, b = (kinds.program(name, TC) for name in ("first", "second"))
        c, d = (more.program(name, TC) for name in ("first", "second"))
        with a.attach("left", Direction.INGRESS, netns=netns) as link_a:
            assert isinstance(link_a, KernelLink)
            with (
                b.attach("left", Direction.INGRESS, netns=netns, anchor=Last()),
                c.attach("left", Direction.INGRESS, netns=netns, anchor=First()) as link_c,
            ):
                assert isinstance(link_c, KernelLink)
                assert order(netns) == [c.info.id, a.info.id, b.info.id]
                with d.attach("left", Direction.INGRESS, netns=netns, anchor=After(link_c)):
                    assert order(netns) == [c.info.id, d.info.id, a.info.id, b.info.id]
                with d.attach("left", Direction.INGRESS, netns=netns, anchor=Before(link_a)):
                    assert order(netns) == [c.info.id, d.info.id, a.info.id, b.info.id]


def test_one_program_twice_on_a_hook_is_refused(kinds: Object, netns: NetNs) -> None:
    first = kinds.program("first", TC)
    with (
        first.attach("left", Direction.INGRESS, netns=netns),
        pytest.raises(KernelError, match="EEXIST"),
    ):
        first.attach("left", Direction.INGRESS, netns=netns)


def test_update_swaps_the_program_in_place(kinds: Object, netns: NetNs) -> None:
    first, second = kinds.program("first", TC), kinds.program("second", TC)
    with first.attach("left", Direction.INGRESS, netns=netns) as link:
        link.update(second)
        assert order(netns) == [second.info.id]


def test_clsact_serves_where_tcx_is_not_wanted(kinds: Object, netns: NetNs) -> None:
    first, second = kinds.program("first", TC), kinds.program("second", TC)
    link = first.attach("left", Direction.INGRESS, netns=netns, via="clsact")
    before = counts(kinds)
    send(netns, "right", 2)
    counted(kinds, 0, before[0] + 2)
    link.update(second)
    send(netns, "right", 2)
    counted(kinds, 1, before[1] + 2)
    with pytest.raises(NotSupportedError, match="pinning"):
        link.pin("/sys/fs/bpf/nothing")
    link.close()
    seen = counts(kinds)[1]
    send(netns, "right", 2)
    assert counts(kinds)[1] == seen
    assert link.closed
    with pytest.raises(ClosedError):
        link.update(first)


def test_a_device_that_is_not_there(kinds: Object, netns: NetNs) -> None:
    with pytest.raises(DeviceGoneError, match="nosuch"):
        kinds.program("first", TC).attach("nosuch", Direction.INGRESS, netns=netns)
    with pytest.raises(DeviceGoneError):
        kinds.program("first", TC).attach(99999, Direction.EGRESS, netns=netns)


def test_a_device_that_went_away_is_told_on_update(kinds: Object, netns: NetNs) -> None:
    with kinds.program("first", TC).attach("left", Direction.INGRESS, netns=netns) as link:
        subprocess.run(["ip", "-n", netns.name, "link", "del", "left"], check=True)
        with pytest.raises(DeviceGoneError):
            link.update(kinds.program("second", TC))


def test_a_pinned_link_goes_on_without_us(kinds: Object, netns: NetNs, pins: PinDir) -> None:
    pins.create()
    path = pins.link_path("left")
    with kinds.program("first", TC).attach("left", Direction.INGRESS, netns=netns) as link:
        link.pin(path)
    assert len(order(netns)) == 1
    with KernelLink.open_pinned(path) as again:
        again.update(kinds.program("second", TC))
        assert order(netns) == [kinds.program("second", TC).info.id]
        again.detach()
    assert order(netns) == []


@pytest.mark.parametrize("mode", [XdpMode.GENERIC, XdpMode.NATIVE])
def test_xdp_runs_in_the_mode_asked_for(kinds: Object, netns: NetNs, mode: XdpMode) -> None:
    with kinds.program("pass", XDP).attach("left", netns=netns, mode=mode):
        before = counts(kinds)[2]
        send(netns, "right", 2)
        counted(kinds, 2, before + 2)


def test_a_second_xdp_program_is_refused_with_the_reason(kinds: Object, netns: NetNs) -> None:
    with (
        kinds.program("pass", XDP).attach("left", netns=netns),
        pytest.raises(KernelError, match="another XDP program is on the device"),
    ):
        kinds.program("pass_frags", XDP).attach("left", netns=netns)


def test_large_mtu_needs_frags(kinds: Object, netns: NetNs) -> None:
    def grow() -> None:
        import fcntl
        import struct

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            for device in (b"left", b"right"):
                fcntl.ioctl(any_socket, 0x8922, struct.pack("16si", device, 9000))  # SIOCSIFMTU

    netns.call(grow)
    with pytest.raises(KernelError, match=r"xdp\.frags"):
        kinds.program("pass", XDP).attach("left", netns=netns, mode=XdpMode.NATIVE)
    with kinds.program("pass_frags", XDP).attach("left", netns=netns, mode=XdpMode.NATIVE):
        send(netns, "right")


def test_native_xdp_where_the_driver_has_none(kinds: Object, netns: NetNs) -> None:
    with pytest.raises(NotSupportedError, match=r"XdpMode\.GENERIC"):
        kinds.program("pass", XDP).attach("lo", netns=netns, mode=XdpMode.NATIVE)


def test_cgroup_programs(kinds: Object, cgroup: Path) -> None:
    with (
        kinds.program("connect4", CgroupSockAddr).attach(cgroup),
        kinds.program("cgroup_skb", CgroupSkb).attach(cgroup) as link,
        kinds.program("sock_ops", SockOps).attach(cgroup),
    ):
        link.update(kinds.program("cgroup_skb", CgroupSkb))


def test_only_links_of_devices_tell_a_device(kinds: Object, netns: NetNs, cgroup: Path) -> None:
    index = netns.call(lambda: socket.if_nametoindex("left"))
    with (
        kinds.program("first", TC).attach("left", Direction.INGRESS, netns=netns) as tcx,
        kinds.program("pass", XDP).attach("left", netns=netns) as xdp,
        kinds.program("cgroup_skb", CgroupSkb).attach(cgroup) as of_cgroup,
        kinds.program("on_lookup", SkLookup).attach(netns) as of_netns,
    ):
        links = [link for link in (tcx, xdp, of_cgroup, of_netns) if isinstance(link, KernelLink)]
        assert [link.info.ifindex for link in links] == [index, index, 0, 0]


def test_a_directory_that_is_no_cgroup(kinds: Object, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=f"{tmp_path}: .*not a directory of a cgroup2 hierarchy"):
        kinds.program("connect4", CgroupSockAddr).attach(tmp_path)
    with pytest.raises(KernelError, match=f"{tmp_path}/gone: No such file") as caught:
        kinds.program("connect4", CgroupSockAddr).attach(tmp_path / "gone")
    assert caught.value.errno == errno.ENOENT
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match=f"{tmp_path}/file: Not a directory"):
        kinds.program("connect4", CgroupSockAddr).attach(tmp_path / "file")


def test_sockmap_programs(kinds: Object) -> None:
    sockets = kinds.map("sockets", maps.SockHash[u32])
    with kinds.program("on_message", SkMsg).attach(sockets), kinds.program("sk_skb", SkSkb).attach(sockets):
        pass


def test_sk_lookup(kinds: Object, netns: NetNs) -> None:
    with kinds.program("on_lookup", SkLookup).attach(netns):
        before = counts(kinds)[3]

        def connect() -> None:
            with socket.socket() as client, pytest.raises(ConnectionRefusedError):
                client.connect(("127.0.0.1", 9))

        netns.call(connect)
        assert counts(kinds)[3] > before


def test_netfilter(kinds: Object, netns: NetNs) -> None:
    with kinds.program("on_packet", Netfilter).attach(
        socket.AF_INET, Hook.LOCAL_OUT, priority=5, netns=netns
    ):
        before = counts(kinds)[3]

        def say() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", ("127.0.0.1", 9))

        netns.call(say)
        assert counts(kinds)[3] > before


def test_an_iterator_returns_what_its_program_wrote(kinds: Object) -> None:
    dots = kinds.program("each_task", Iter).read()
    assert len(dots) > 1
    assert set(dots) == {ord(".")}


def test_run_returns_verdict_packet_and_context(kinds: Object) -> None:
    ctx = bytearray(192)
    result = kinds.program("first", TC).run(FRAME, ctx=bytes(ctx))
    assert result.retval == 0xFFFFFFFF
    assert result.data == FRAME
    assert int.from_bytes(result.ctx[8:12], "little") == 7  # skb->mark
    assert kinds.program("first", TC).run(FRAME, repeat=1000).duration_ns > 0


def test_a_packet_that_is_too_short_is_refused(kinds: Object) -> None:
    with pytest.raises(KernelError):
        kinds.program("first", TC).run(b"short")


def test_many_packets_run_in_one_go(kinds: Object) -> None:
    program = kinds.program("first", TC)
    packets = [FRAME, FRAME + bytes(7), FRAME + bytes(1000)] * 50
    one = program.run(FRAME)
    ran = program.run_many(packets)
    assert ran == [(one.retval, packet) for packet in packets]
    assert program.run_many(packets, ctxs=[bytes(192)] * len(packets)) == ran
    assert program.run_many([]) == []


def test_many_packets_run_up_to_the_first_that_is_refused(kinds: Object) -> None:
    with pytest.raises(KernelError, match="first on packet 2"):
        kinds.program("first", TC).run_many([FRAME, FRAME, b"short", FRAME])


def test_a_kind_only_takes_its_own_programs(kinds: Object) -> None:
    with pytest.raises(ObjectError, match="SkMsg is type 16"):
        kinds.program("first", SkMsg)
