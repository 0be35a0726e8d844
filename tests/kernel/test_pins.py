"""Pin directories: who owns them, what may be removed, what is refused."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from k8sdatapath import compile, maps
from k8sdatapath.errors import BpffsError, LayoutError, PinsBusyError
from k8sdatapath.layout import u32
from k8sdatapath.links import KernelLink
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.pins import PinDir
from k8sdatapath.programs import CgroupSkb


def test_a_pin_directory_has_one_owner(pins: PinDir) -> None:
    with pins.lock():
        with pytest.raises(PinsBusyError, match=f"process {os.getpid()} has it"):
            pins.lock()
        with pytest.raises(PinsBusyError):
            pins.lock()  # a refusal has not taken it away
    pins.lock().close()


def test_the_lock_of_a_killed_process_is_free(pins: PinDir) -> None:
    code = (
        f"from k8sdatapath.pins import PinDir; l = PinDir({str(pins)!r}).lock(); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(PinsBusyError, match=f"process {holder.pid} has it"):
            pins.lock()
        holder.kill()
        holder.wait()
        pins.lock().close()


def test_a_lock_leaves_no_directory_that_it_made(pins: PinDir) -> None:
    with pins.lock():
        assert pins.path.is_dir()
    assert not pins.path.exists()
    pins.create()
    pins.lock().close()
    assert pins.path.exists()


def test_a_directory_can_be_removed_and_locked_again_under_a_lock(pins: PinDir) -> None:
    with pins.lock():
        pins.remove()
        with pins.lock(), pytest.raises(PinsBusyError):
            pins.lock()


def test_only_pins_are_ever_removed(tmp_path: Path, pins: PinDir) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "kept").write_text("data")
    with pytest.raises(BpffsError, match="not on a BPF filesystem, nothing was removed"):
        PinDir(tmp_path).remove()
    assert (tmp_path / "maps" / "kept").read_text() == "data"
    pins.create()
    (pins.path / "maps").rmdir()
    (pins.path / "maps").symlink_to(tmp_path / "maps")
    with pytest.raises(BpffsError, match="nothing was removed"):
        pins.remove()
    assert (tmp_path / "maps" / "kept").read_text() == "data"
    (pins.path / "maps").unlink()
    pins.remove()
    pins.remove()  # there is nothing left to do


def test_pins_of_others_stay(pins: PinDir) -> None:
    theirs = pins.create().path / "theirs"
    theirs.mkdir()
    with maps.Array[u32].create("kdpins", 1) as table:
        pins.pin(table.fd, pins.map_path("ours"))
        pins.pin(table.fd, theirs / "table")
    with pytest.raises(BpffsError, match="what is left was not pinned by this library"):
        pins.remove()
    assert pins.maps == []
    (theirs / "table").unlink()
    theirs.rmdir()


def test_a_pin_directory_is_its_owner_s(pins: PinDir) -> None:
    before = os.umask(0)
    try:
        PinDir(pins.path / "below").create()
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (pins.path, *(pins.path / "below").rglob("*"))]
    assert modes == [0o700] * 3
    PinDir(pins.path / "below").remove()


@pytest.mark.parametrize("part", ["", "maps", "links"])
def test_a_directory_that_others_can_change_is_refused(
    kinds_spec: ObjectSpec, pins: PinDir, part: str
) -> None:
    kinds_spec.load(pins=pins).close()
    place = pins.path / part
    for owner, mode, said in ((0, 0o770, "chmod go-w"), (99, 0o700, "user 99")):
        os.chown(place, owner, 0)
        place.chmod(mode)
        with pytest.raises(BpffsError, match=f"use pin directory: {place}: .*{said}"):
            kinds_spec.load(pins=pins)
    os.chown(place, 0, 0)
    kinds_spec.load(pins=pins).close()


def test_pins_are_not_opened_where_others_can_put_them(pins: PinDir) -> None:
    with maps.Array[u32].create("kdpins", 1) as table:
        pins.pin(table.fd, pins.map_path("table"))
    os.chown(pins.path / "maps", 99, 0)
    with pytest.raises(BpffsError, match="user 99 owns it"):
        pins.open_map("table")


def test_a_load_that_fails_leaves_nothing(kinds_spec: ObjectSpec, pins: PinDir) -> None:
    deep = PinDir(pins.path / "one" / "two")
    with maps.Array[u32].create("pairs", 1) as other, pytest.raises(LayoutError):
        kinds_spec.load(reuse={"pairs": other}, pins=deep)
    assert not pins.path.exists()
    kinds_spec.load(pins=pins).close()
    pins.map_path("counts").unlink()
    with maps.Array[u32].create("pairs", 1) as other, pytest.raises(LayoutError):
        kinds_spec.load(reuse={"pairs": other}, pins=pins)
    assert pins.maps == ["pairs", "sockets"]


def test_a_failure_within_a_failure_is_cleaned_once(kinds_spec: ObjectSpec, pins: PinDir) -> None:
    def open_both(other: maps.Map) -> None:
        with pins.lock(), pins.restored_on_error():
            kinds_spec.load(pins=pins).close()
            kinds_spec.load(reuse={"pairs": other}, pins=pins)

    with maps.Array[u32].create("pairs", 1) as other, pytest.raises(LayoutError):
        open_both(other)
    assert not pins.path.exists()


def test_a_directory_that_cannot_be_made(pins: PinDir) -> None:
    for make in (PinDir.create, PinDir.lock):
        with pytest.raises(BpffsError, match=r"kd\.dots: .*names in a BPF filesystem may not contain dots"):
            make(PinDir("/sys/fs/bpf/kd.dots"))
    with maps.Array[u32].create("kdpins", 1) as table:
        pins.pin(table.fd, pins.map_path("table"))
        with pytest.raises(BpffsError, match="may not contain dots"):
            pins.pin(table.fd, pins.map_path("ta.ble"))
        with pytest.raises(BpffsError, match="a part of the path is not a directory"):
            PinDir(pins.map_path("table") / "below").create()
        with pytest.raises(BpffsError, match="File exists") as caught:
            pins.pin(table.fd, pins.map_path("table"))
        assert caught.value.errno == errno.EEXIST


def test_a_pin_that_is_something_else(kinds_spec: ObjectSpec, pins: PinDir, cgroup: Path) -> None:
    with kinds_spec.load(pins=pins) as kinds, kinds.program("cgroup_skb", CgroupSkb).attach(cgroup) as link:
        link.pin(pins.map_path("odd"))
        with pytest.raises(BpffsError, match=r"open pinned map: .*/odd: .*a bpf-link is pinned there"):
            pins.open_map("odd")
        pins.map_path("odd").rename(pins.link_path("odd"))
    pins.map_path("pairs").rename(pins.link_path("pairs"))
    with pytest.raises(BpffsError, match=r"open pinned link: .*/pairs: .*a bpf-map is pinned there"):
        KernelLink.open_pinned(pins.link_path("pairs"))
    pins.map_path("pairs").mkdir()
    with pytest.raises(BpffsError, match=r"open pinned map: .*/pairs: .*a directory is there"):
        kinds_spec.load(pins=pins)
    pins.map_path("pairs").rmdir()
    with pytest.raises(BpffsError, match="nothing is pinned there"):
        pins.open_map("pairs")


MANY_AT_ONCE = """
import subprocess, time
from concurrent.futures import ThreadPoolExecutor
from k8sdatapath.pins import BPFFS, ensure_bpffs
from k8sdatapath.pybpf import links

while links.is_bpffs(BPFFS):
    subprocess.run(["umount", "-l", BPFFS], check=True)
mount = links.mount_bpffs
links.mount_bpffs = lambda path: (time.sleep(0.1), mount(path))  # the others have found that it lacks
with ThreadPoolExecutor(4) as pool:
    list(pool.map(ensure_bpffs, [BPFFS] * 4))
with open("/proc/self/mountinfo") as mounts:
    print(sum(f" {BPFFS} " in line for line in mounts))
"""


def test_the_filesystem_is_mounted_once_however_many_find_that_it_lacks() -> None:
    """What was pinned in one below another could not be found."""
    command = ["unshare", "--mount", sys.executable, "-c", MANY_AT_ONCE]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "1\n"


VERSION = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC("license") = "GPL";
struct row { %s };
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct row);
} kd_rows SEC(".maps");
SEC("tc") int count(void *packet)
{
	__u32 key = 0;
	return bpf_map_lookup_elem(&kd_rows, &key) ? 1 : 0;
}
"""


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ("__u32 id; __u16 port; __u16 flags;", ""),
        ("__u32 id; __u16 flags; __u16 port;", r"!    4 __u16 port +4 __u16 flags\n"),
        ("__u32 id; __u32 flags;", r"!    6 __u16 flags$"),
        (
            "__u64 id; __u16 port; __u16 flags;",
            r"value size 8 instead of 16, another layout of its value\. It",
        ),
    ],
)
def test_a_map_of_another_version_is_refused_and_both_layouts_are_shown(
    pins: PinDir, members: str, said: str
) -> None:
    old = compile(VERSION % "__u32 id; __u16 port; __u16 flags;", name="old")
    new = compile(VERSION % members, name="new")
    with old.load(pins=pins):
        before = pins.maps
        if not said:
            new.load(pins=pins).close()
            return
        with pytest.raises(LayoutError, match=r"kd_rows.* cannot serve as 'kd_rows' of new") as refused:
            new.load(pins=pins)
    assert re.search(said, str(refused.value), re.MULTILINE), refused.value
    assert "pinned: struct row (8 bytes)" in str(refused.value)
    assert pins.maps == before  # nothing is lost
