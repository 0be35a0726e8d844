from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath.compiler import compile
from k8sdatapath.errors import NotSupportedError, ObjectError
from k8sdatapath.pybpf.btf import Btf, Kind, Member
from k8sdatapath.pybpf.objects import OpenObject

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def raw() -> bytes:
    spec = compile(DATA / "maps.bpf.c", flags=["-Werror"])
    with OpenObject(spec.image, spec.name) as opened:
        return opened.btf


@pytest.fixture(scope="module")
def btf(raw: bytes) -> Btf:
    return Btf(raw)


def struct(btf: Btf, name: str) -> int:
    found = btf.find(name, Kind.STRUCT)
    assert found is not None
    return found.id


def test_members_have_places_sizes_and_c_names(btf: Btf) -> None:
    told = [
        (each.offset, each.size, btf.describe(each.type_id), each.name)
        for each in btf.members(struct(btf, "sample"))
    ]
    assert told == [
        (0, 16, "struct kd_addr", "source"),
        (16, 4, "struct point", "at"),
        (20, 12, "__u32[3]", "history"),
        (32, 8, "__u64", "total"),
        (40, 4, "__s32", "delta"),
        (44, 4, "enum color", "color"),
        (48, 8, "char[8]", "name"),
        (56, 6, "__u8[6]", "mac"),
        (62, 2, "__u8[2]", "pad"),
    ]
    assert btf.size_of(struct(btf, "sample")) == 64


def test_bit_fields_unions_pointers_and_grids(btf: Btf) -> None:
    low, high, nameless, other, text, grid = btf.members(struct(btf, "odd"))
    assert (low.bits, high.bits, high.offset) == (4, 28, 0)
    assert nameless == Member("", 4, 4, nameless.type_id)
    assert btf.describe(nameless.type_id) == "union {...}"
    assert btf.size_of(other.type_id) == 16
    assert (btf.describe(text.type_id), text.size) == ("const char *", 8)
    assert (btf.describe(grid.type_id), grid.size) == ("__u32[2][3]", 24)


def test_the_names_of_a_type_are_kept_on_the_way_to_what_it_is(btf: Btf) -> None:
    x, y = btf.members(struct(btf, "point"))
    assert btf.names(y.type_id) == ("__be16", "__u16")
    assert btf.names(x.type_id) == ("__u16",)
    assert btf.resolve(y.type_id) == btf.resolve(x.type_id)
    assert btf.resolve(y.type_id).name == "unsigned short"


def test_signs(btf: Btf) -> None:
    members = {each.name: each.type_id for each in btf.members(struct(btf, "sample"))}
    assert btf.is_signed(members["delta"])
    assert not btf.is_signed(members["total"])
    assert not btf.is_signed(members["color"])


def test_variables_of_a_section_with_their_tags(btf: Btf) -> None:
    limit, listen = btf.datasec(".rodata.config")
    assert (limit.name, limit.offset, limit.size) == ("limit", 0, 4)
    assert btf.decl_tags(limit.id) == ("how many at once",)
    assert (listen.name, listen.offset, btf.describe(listen.type_id)) == (
        "listen",
        4,
        "const volatile __be16",
    )
    assert btf.datasec(".rodata.none") == ()


def test_what_is_not_there_is_none(btf: Btf) -> None:
    assert btf.find("nobody", Kind.STRUCT) is None
    assert btf.find("sample", Kind.UNION) is None
    with pytest.raises(ObjectError, match="none has number 99999"):
        btf.type(99999)


def test_questions_that_make_no_sense(btf: Btf) -> None:
    function = btf.find("produce", Kind.FUNC)
    assert function is not None
    with pytest.raises(ObjectError, match="'produce' has no size"):
        btf.size_of(function.id)
    with pytest.raises(ObjectError, match="'void' has no size"):
        btf.size_of(0)
    with pytest.raises(ObjectError, match="'produce' is no struct or union"):
        btf.members(function.id)


def test_the_running_kernel_s_own() -> None:
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        raise NotSupportedError("BTF of its own")
    kernel = Btf(path.read_bytes())
    assert kernel.size_of(struct(kernel, "list_head")) == 16
    assert [each.name for each in kernel.members(struct(kernel, "list_head"))] == ["next", "prev"]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda raw: b"", "cut short: 0 bytes"),
        (lambda raw: raw[:40], "reach past its end"),
        (lambda raw: b"\x7fELF" + raw[4:], "not BTF"),
        (lambda raw: raw[1::-1] + raw[2:], "not of this .*-endian machine"),
        (lambda raw: raw[:2] + b"\x09" + raw[3:], "version 9"),
    ],
)
def test_what_is_no_btf_is_refused(raw: bytes, broken: object, why: str) -> None:
    with pytest.raises(ObjectError, match=why):
        Btf(broken(raw))  # type: ignore[operator]


@settings(max_examples=300)
@given(data=st.data())
def test_damage_is_an_object_error_or_harmless(raw: bytes, data: st.DataObject) -> None:
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        btf = Btf(bytes(damaged))
        for each in btf.types:
            btf.describe(each.id)
            btf.names(each.id)
            if btf.resolve(each.id).kind in (Kind.STRUCT, Kind.UNION):
                btf.members(each.id)
    except ObjectError:
        pass
