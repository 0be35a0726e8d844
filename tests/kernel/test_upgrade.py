"""Maps that another version has pinned: their rows are turned into those of this one, or refused."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack

import pytest

from k8sdatapath import compile, maps
from k8sdatapath.errors import LayoutError
from k8sdatapath.layout import struct, u16, u32, u64
from k8sdatapath.net.netns import NetNs
from k8sdatapath.node import Node, NodeConfig
from k8sdatapath.node.loading import event_rows, specs
from k8sdatapath.node.upgrade import upgrade
from k8sdatapath.objects import ObjectSpec
from k8sdatapath.pins import PinDir
from k8sdatapath.pybpf import cpus
from k8sdatapath.pybpf import maps as kernel_maps
from k8sdatapath.pybpf.maps import MapType

pytestmark = pytest.mark.kernel

SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct key {{ __u32 id; __u32 part; }};
struct row {{ {members} }};
struct {{
	__uint(type, BPF_MAP_TYPE_{kind});
	__uint(max_entries, {size});
	__type(key, {key});
	__type(value, struct row);
}} kd_rows SEC(".maps");
SEC("tc") int prog(struct __sk_buff *skb)
{{
	__u64 key = 0;
	return bpf_map_lookup_elem(&kd_rows, &key) ? 1 : 0;
}}
"""
OLD = "__u64 count; __u16 port; __u16 flags; __u32 pad;"
NEW = "__u32 fresh; __u16 flags; __u16 port; __u64 count; __u64 more;"


@struct
class Key:
    id: u32
    part: u32


@struct
class Old:
    count: u64
    port: u16
    flags: u16
    pad: u32


@struct
class New:
    fresh: u32
    flags: u16
    port: u16
    count: u64
    more: u64


SEVEN = Key(7, 0)


def version(members: str, kind: str = "HASH", key: str = "struct key", size: int = 16) -> ObjectSpec:
    if "ARRAY" in kind:
        key = "__u32"
    return compile(SOURCE.format(members=members, kind=kind, key=key, size=size), name="version")


@pytest.mark.parametrize("kind", ["HASH", "LRU_HASH", "ARRAY"])
def test_rows_go_along_by_the_names_of_their_members(pins: PinDir, kind: str) -> None:
    if kind == "ARRAY":
        keys, before, after = list(range(16)), maps.Array[Old], maps.Array[New]
    else:
        shape = maps.Hash if kind == "HASH" else maps.LRUHash
        keys, before, after = [Key(n, n + 1) for n in range(16)], shape[Key, Old], shape[Key, New]
    with version(OLD, kind).load(pins=pins) as old:
        rows = old.map("kd_rows", before)
        rows.update_many({key: Old(n << 40, n, n + 1, 0) for n, key in enumerate(keys)})
    new = version(NEW, kind)
    assert upgrade(pins, {"version": new}, ()) == ("kd_rows",)
    with new.load(pins=pins) as loaded:
        rows = loaded.map("kd_rows", after)
        assert {key: rows[key] for key in keys} == {
            key: New(0, n + 1, n, n << 40, 0) for n, key in enumerate(keys)
        }
    assert upgrade(pins, {"version": new}, ()) == ()  # all is as it should be now


def test_counters_of_each_processor_go_along(pins: PinDir) -> None:
    with version("__u32 a; __u32 b;", "PERCPU_ARRAY", size=4).load(pins=pins) as old:
        raw = kernel_maps.KernelMap(old.map_fds["kd_rows"], kernel_maps.info(old.map_fds["kd_rows"]))
        cpus = range(raw.info.stride // 8)
        value = b"".join((100 + n).to_bytes(4, "little") + n.to_bytes(4, "little") for n in cpus)
        assert raw.update(bytes(4), value) == 0
    new = version("__u64 first; __u32 b; __u32 a;", "PERCPU_ARRAY", size=8)
    assert upgrade(pins, {"version": new}, ()) == ("kd_rows",)
    with new.load(pins=pins) as loaded:
        fd = loaded.map_fds["kd_rows"]
        grown = kernel_maps.KernelMap(fd, kernel_maps.info(fd))
        assert grown.info.max_entries == 8
        expected = b"".join(
            bytes(8) + n.to_bytes(4, "little") + (100 + n).to_bytes(4, "little") for n in cpus
        )
        assert grown.lookup(bytes(4)) == expected


def test_a_map_of_a_fixed_size_grows_and_one_that_is_sized_by_others_does_not(pins: PinDir) -> None:
    with version(OLD, size=16).load(pins=pins) as old:
        old.map("kd_rows", maps.Hash[Key, Old])[SEVEN] = Old(1, 2, 3, 0)
    larger = version(OLD, size=64)
    assert upgrade(pins, {"version": larger}, ["kd_rows"]) == ()
    assert upgrade(pins, {"version": larger}, ()) == ("kd_rows",)
    with larger.load(pins=pins) as loaded:
        rows = loaded.map("kd_rows", maps.Hash[Key, Old])
        assert (rows.info.max_entries, dict(rows.items())) == (64, {SEVEN: Old(1, 2, 3, 0)})


@pytest.mark.parametrize(
    ("members", "others", "said"),
    [
        ("__u64 count; __u16 port;", {}, "another layout of its value"),  # a member is gone
        ("__u64 count; __u32 port; __u16 flags;", {}, "another layout of its value"),  # one is wider
        ("__u64 number; __u16 port; __u16 flags;", {}, "another layout of its value"),  # has another name
        (OLD, {"key": "__u64"}, "another layout of its key"),
        (OLD, {"key": "__u32"}, "key size 8 instead of 4"),
        (OLD, {"kind": "LRU_HASH"}, "type 1 instead of 9"),
    ],
)
def test_what_would_lose_something_is_refused_and_stays(
    pins: PinDir, members: str, others: dict[str, str], said: str
) -> None:
    with version(OLD).load(pins=pins) as old:
        old.map("kd_rows", maps.Hash[Key, Old])[SEVEN] = Old(1, 2, 3, 0)
    with pytest.raises(LayoutError) as refused:
        upgrade(pins, {"version": version(members, **others)}, ())
    assert said in str(refused.value)
    with ExitStack() as own:
        rows = maps.bind(maps.Hash[Key, Old], own.enter_context(pins.open_map("kd_rows")))
        assert dict(rows.items()) == {SEVEN: Old(1, 2, 3, 0)}


OTHERS = {
    "type": lambda kind, key, value, size, flags: (
        MapType.LRU_HASH if kind == MapType.HASH else MapType.HASH,
        key,
        value,
        size,
        0,
    ),
    "key size": lambda kind, key, value, size, flags: (MapType.HASH, key + 4, value, size, 0),
    "value size": lambda kind, key, value, size, flags: (MapType.HASH, key, value + 8, size, 0),
    "flags": lambda kind, key, value, size, flags: (MapType.HASH, key, value, size, 1 - (flags & 1)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_every_map_of_a_node_is_looked_at(pins: PinDir, what: str) -> None:
    """Each in turn is another version's, of which nothing is known but its sizes."""
    wanted = specs(NodeConfig(xdp=True, uplinks=["lo"]))
    declared = {name: each for spec in wanted.values() for name, each in spec.maps.items()}
    assert len(declared) > 15
    for name, about in declared.items():
        kind, key, value, size, flags = OTHERS[what](
            about.type, about.key_size or 4, about.value_size or 4, 8, about.flags
        )
        pins.create()
        with kernel_maps.create(kind, "other", key, value, size, flags=flags) as other:
            pins.pin(other, pins.map_path(name))
        with pytest.raises(LayoutError, match=f"cannot serve as '{name}'"):
            upgrade(pins, wanted, ())
        pins.remove()


def test_where_nothing_is_pinned_nothing_is_made(pins: PinDir) -> None:
    assert upgrade(pins, specs(NodeConfig()), ()) == ()
    assert not pins.path.exists()


def test_a_node_that_tells_of_packets_finds_what_one_that_did_not_has_pinned(pins: PinDir) -> None:
    with NetNs.create(f"kdup-{os.getpid()}") as netns:
        rows = event_rows(len(cpus.online()))
        for level, size, room in (
            (None, mmap.PAGESIZE, 1),
            ("all", 1 << 20, rows),
            (None, 1 << 20, rows),
        ):
            config = NodeConfig(netns=netns, pins=pins, socket_lb=False, flows=level)
            with Node.open(config) as node:
                assert (node.observer is None) == (level is None)
                with pins.open_map("kd_events") as ring, pins.open_map("kd_event_rows") as queues:
                    assert kernel_maps.info(ring).max_entries == size
                    assert kernel_maps.info(queues).max_entries == room
