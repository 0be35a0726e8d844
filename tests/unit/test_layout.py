from __future__ import annotations

import struct as machine
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.compiler import compile
from k8sdatapath.errors import LayoutError
from k8sdatapath.layout import (
    addr,
    array,
    be16,
    be32,
    be64,
    cstr,
    i32,
    i64,
    layout_of,
    mac,
    network,
    raw,
    struct,
    u8,
    u16,
    u32,
    u64,
    zeros,
)
from k8sdatapath.pybpf.btf import Btf, Kind
from k8sdatapath.pybpf.objects import OpenObject
from tests.support.sample import Point, Sample

DATA = Path(__file__).parent.parent / "data"


SAMPLE = Sample(
    ip_address("10.0.0.1"), Point(1, 0x1234), (1, 2, 3), 1 << 40, -2, 1, "eth0", "02:00:00:00:00:0a"
)


@pytest.fixture(scope="module")
def btf() -> Btf:
    spec = compile(DATA / "maps.bpf.c", flags=["-Werror"])
    with OpenObject(spec.image, spec.name) as opened:
        return Btf(opened.btf)


def type_id(btf: Btf, name: str) -> int:
    found = btf.find(name, Kind.STRUCT)
    assert found is not None
    return found.id


# ---- bytes ----


def test_a_struct_is_its_members_in_c_s_places() -> None:
    packed = layout_of(Sample).pack(SAMPLE)
    assert packed == machine.pack(
        "=10x2s4sH2s3IQiI8s6s2x",
        b"\xff\xff",
        bytes([10, 0, 0, 1]),
        1,
        b"\x12\x34",
        *(1, 2, 3),
        1 << 40,
        -2,
        1,
        b"eth0",
        bytes.fromhex("02000000000a"),
    )
    assert layout_of(Sample).size == len(packed) == 64
    assert layout_of(Sample).unpack(packed) == SAMPLE


def test_a_struct_is_a_frozen_value() -> None:
    assert Point(1, 2) == Point(x=1, y=2) != Point(2, 1)
    assert len({SAMPLE, SAMPLE}) == 1
    with pytest.raises(AttributeError):
        SAMPLE.delta = 3  # type: ignore[misc]


def test_fields_tell_where_everything_is() -> None:
    told = [(each.name, each.offset, each.size, each.codec.name) for each in layout_of(Sample).fields]
    assert told[:3] == [
        ("source", 0, 16, "addr"),
        ("at", 16, 4, "Point"),
        ("history", 20, 12, "array(u32, 3)"),
    ]
    assert told[-1] == ("pad", 62, 2, "zeros(2)")


def test_a_field_may_have_a_default() -> None:
    @struct
    class Defaulted:
        kind: u32
        count: u32 = 7

    assert layout_of(Defaulted).pack(Defaulted(1)) == machine.pack("=II", 1, 7)


@pytest.mark.parametrize(
    ("tp", "value", "packed"),
    [
        (u8, 255, b"\xff"),
        (be16, 80, b"\0\x50"),
        (be32, 1, b"\0\0\0\1"),
        (be64, 2, b"\0\0\0\0\0\0\0\2"),
        (i64, -1, b"\xff" * 8),
        (addr, ip_address("fd00::1"), bytes.fromhex("fd") + bytes(14) + b"\1"),
        (addr, ip_address("1.2.3.4"), bytes(10) + b"\xff\xff\1\2\3\4"),
        (mac, "aa:bb:cc:00:11:22", bytes.fromhex("aabbcc001122")),
        (Annotated[str, cstr(4)], "abc", b"abc\0"),
        (Annotated[bytes, raw(2)], b"xy", b"xy"),
        (Annotated[tuple[int, ...], array(be16, 2)], (1, 2), b"\0\1\0\2"),
        (Annotated[tuple[Point, ...], array(Point, 1)], (Point(0, 1),), b"\0\0\0\1"),
        (network, ip_network("10.0.0.0/8"), machine.pack("=I", 104) + bytes(10) + b"\xff\xff\x0a\0\0\0"),
        (network, ip_network("fd00::/8"), machine.pack("=I", 8) + b"\xfd" + bytes(15)),
    ],
)
def test_values_and_their_bytes(tp: Any, value: Any, packed: bytes) -> None:
    layout = layout_of(tp)
    assert layout.pack(value) == packed
    assert layout.unpack(packed) == value
    assert layout.pack_many(iter([value, value])) == packed * 2
    assert layout.unpack_many(memoryview(packed * 3)) == [value] * 3


def test_types_that_take_the_size_of_the_map() -> None:
    assert layout_of(bytes, size=3).unpack(b"abc") == b"abc"
    small = layout_of(network, size=8)
    assert small.unpack(small.pack(ip_network("10.0.0.0/8"))) == ip_network("10.0.0.0/8")
    with pytest.raises(LayoutError, match="IPv4Network is needed"):
        small.pack(ip_network("fd00::/8"))


@given(
    st.builds(
        Sample,
        st.ip_addresses().filter(lambda ip: ip.version == 4 or ip.ipv4_mapped is None),
        st.builds(Point, st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1)),
        st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
        st.integers(0, 2**64 - 1),
        st.integers(-(2**31), 2**31 - 1),
        st.integers(0, 2**32 - 1),
        st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=7),
        st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":")),
    )
)
def test_what_is_packed_comes_back(sample: Sample) -> None:
    layout = layout_of(Sample)
    assert layout.unpack(layout.pack(sample)) == sample
    assert layout.unpack_many(layout.pack_many([sample] * 3)) == [sample] * 3


# ---- refusals ----


@pytest.mark.parametrize(
    ("tp", "value", "why"),
    [
        (u8, 256, "u8 holds whole numbers from 0 to 255, not 256"),
        (u32, -1, "u32 holds whole numbers from 0 to 4294967295, not -1"),
        (i32, 2**31, "i32 holds whole numbers from -2147483648 to 2147483647, not 2147483648"),
        (u16, "1", "u16 holds .* not '1'"),
        (be16, 65536, "be16 holds whole numbers from 0 to 65535, not 65536"),
        (be64, -1, "be64 holds"),
        (u32, 1.5, "u32 holds .* not 1.5"),
        (addr, "10.0.0.1", "addr cannot hold '10.0.0.1': an IPv4Address or IPv6Address is needed"),
        (addr, ip_address("fe80::1%eth0"), "a scope cannot be written down"),
        (mac, "02:00:00", "six pairs of hex digits"),
        (mac, "zz:00:00:00:00:00", "mac cannot hold"),
        (Annotated[str, cstr(4)], "four", "at most 3 bytes of text fit"),
        (Annotated[str, cstr(4)], "a\0b", "none of them NUL"),
        (Annotated[bytes, raw(4)], b"123", "exactly 4 bytes are needed, not 3"),
        (Annotated[tuple[int, ...], array(u32, 3)], (1, 2), "array.* cannot hold"),
        (Annotated[tuple[int, ...], array(be32, 3)], (1, 2), "exactly 3 elements are needed, not 2"),
        (network, ip_address("10.0.0.1"), "IPv4Network or IPv6Network is needed"),
        (Point, SAMPLE, "Sample.* is no Point"),
        (Point, Point(1, 70000), "Point.y: be16 holds whole numbers from 0 to 65535, not 70000"),
    ],
)
def test_a_value_that_does_not_fit_is_named(tp: Any, value: Any, why: str) -> None:
    for pack in (layout_of(tp).pack, lambda value: layout_of(tp).pack_many([value])):
        with pytest.raises(LayoutError, match=why):
            pack(value)


def test_the_member_of_a_member_is_named() -> None:
    bad = Sample(SAMPLE.source, Point(-1, 0), (1, 2, 3), 0, 0, 0, "", SAMPLE.mac)
    with pytest.raises(
        LayoutError, match=r"Sample.at: Point.x: u16 holds whole numbers from 0 to 65535, not -1"
    ):
        layout_of(Sample).pack(bad)


def test_bytes_of_another_size_are_refused() -> None:
    with pytest.raises(LayoutError, match="Point has 4 bytes, not 3"):
        layout_of(Point).unpack(b"abc")
    with pytest.raises(LayoutError, match="Point has 4 bytes, not 6"):
        layout_of(Point).unpack_many(bytes(6))


def test_a_hole_must_be_written_down() -> None:
    with pytest.raises(LayoutError, match=r"Holey.count \(u32\) cannot begin at byte 1.*zeros\(3\)"):

        @struct
        class Holey:
            kind: u8
            count: u32

    with pytest.raises(LayoutError, match=r"Short ends at byte 5, C would make it 8 bytes.*zeros\(3\)"):

        @struct
        class Short:
            count: u32
            kind: u8


def test_a_field_needs_a_type_with_a_layout() -> None:
    with pytest.raises(LayoutError, match=r"Vague.count: int has no layout in memory \(say which: u8, u32"):

        @struct
        class Vague:
            count: int

    for tp in (str, int | None, Annotated[int, "nothing"], object()):
        with pytest.raises(LayoutError, match="has no layout in memory"):
            layout_of(tp)


# ---- against C ----


def test_a_twin_fits(btf: Btf) -> None:
    layout_of(Sample).check(btf, type_id(btf, "sample"), "map 'samples', value")


def test_a_difference_is_shown_side_by_side(btf: Btf) -> None:
    @struct
    class Wrong:
        source: addr
        at: Point
        history: Annotated[tuple[int, ...], array(u32, 3)]
        sum: u64
        delta: u32
        color: u16
        shade: u16
        name: Annotated[str, cstr(8)]
        mac: mac
        pad: ClassVar = zeros(2)

    with pytest.raises(LayoutError) as error:
        layout_of(Wrong).check(btf, type_id(btf, "sample"), "map 'samples', value")
    assert str(error.value).splitlines() == [
        "map 'samples', value: C and Python differ",
        "    byte  C: struct sample (64 bytes)   Python: Wrong (64 bytes)",
        "       0  struct kd_addr source         source: addr",
        "      16  struct point at               at: Point",
        "      20  __u32 history[3]              history: array(u32, 3)",
        "  !   32  __u64 total                   sum: u64",
        "  !   40  __s32 delta                   delta: u32",
        "  !   44  enum color color              color: u16",
        "  !   46                                shade: u16",
        "      48  char name[8]                  name: cstr(8)",
        "      56  __u8 mac[6]                   mac: mac",
        "      62  __u8 pad[2]                   pad: zeros(2)",
    ]


def test_a_difference_inside_a_member_is_shown_there(btf: Btf) -> None:
    @struct
    class Host:
        x: u16
        y: u16

    @struct
    class Outer:
        source: addr
        at: Host
        rest: Annotated[bytes, raw(44)]

    with pytest.raises(LayoutError, match="map 'samples', value, member 'at': C and Python differ") as error:
        layout_of(Outer).check(btf, type_id(btf, "sample"), "map 'samples', value")
    assert "  !    2  __be16 y" in str(error.value)


def test_scalars_are_compared_too(btf: Btf) -> None:
    x, y = (each.type_id for each in btf.members(type_id(btf, "point")))
    layout_of(u16).check(btf, x, "key")
    layout_of(be16).check(btf, x, "key")  # C may keep wire order in a plain integer
    layout_of(be16).check(btf, y, "key")
    with pytest.raises(LayoutError, match=r"!    0  __be16 +u16"):
        layout_of(u16).check(btf, y, "key")
    with pytest.raises(LayoutError, match=r"C: __u16 \(2 bytes\) +Python: u32 \(4 bytes\)"):
        layout_of(u32).check(btf, x, "key")
    with pytest.raises(LayoutError, match="struct point"):
        layout_of(u32).check(btf, type_id(btf, "point"), "key")


def test_shapes_of_c_that_have_a_twin(btf: Btf) -> None:
    @struct
    class Odd:
        bits: Annotated[bytes, raw(4)]
        number: u32
        other: addr
        text: u64
        grid: Annotated[bytes, raw(24)]

    id = type_id(btf, "odd")
    with pytest.raises(LayoutError) as error:
        layout_of(Odd).check(btf, id, "value")
    marks = {line[4:8].strip(): line[2] for line in str(error.value).splitlines()[2:]}
    assert marks == {
        "0": "!",
        "4": "!",
        "8": " ",
        "24": " ",
        "32": " ",
    }  # bit fields and unions of scalars have none
    layout_of(Annotated[bytes, raw(56)]).check(btf, id, "value")


def test_a_hole_of_the_compiler_may_be_written_as_zeros(btf: Btf) -> None:
    @struct
    class Holey:
        kind: u8
        pad: ClassVar = zeros(3)
        count: u32

    layout_of(Holey).check(btf, type_id(btf, "holey"), "value")


def test_zeros_must_not_cover_a_member(btf: Btf) -> None:
    @struct
    class Blind:
        pad: ClassVar = zeros(4)
        count: u32

    with pytest.raises(LayoutError, match="!    0  __u8 kind"):
        layout_of(Blind).check(btf, type_id(btf, "holey"), "value")


def test_a_trie_s_key_fits_a_prefix_and_an_address(btf: Btf) -> None:
    layout_of(network).check(btf, type_id(btf, "prefix"), "key")
    with pytest.raises(LayoutError):
        layout_of(network).check(btf, type_id(btf, "sample"), "key")


def test_an_address_is_no_two_numbers(btf: Btf) -> None:
    with pytest.raises(LayoutError, match="struct tally"):
        layout_of(addr).check(btf, type_id(btf, "tally"), "value")


def test_a_layout_is_made_once_for_each_size() -> None:
    assert layout_of(bytes, size=24) is layout_of(bytes, size=24)
    assert layout_of(bytes, size=24) is not layout_of(bytes, size=16)
