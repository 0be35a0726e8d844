"""Objects: specs as values, loads as effects."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8sdatapath import maps, programs
from k8sdatapath.compiler import compile
from k8sdatapath.errors import BpffsError, ClosedError, LayoutError, ObjectError
from k8sdatapath.layout import layout_of, struct, u32, u64
from k8sdatapath.objects import Object, ObjectSpec, shipped_objects
from k8sdatapath.pins import PinDir

FRAME = bytes(12) + b"\x08\x00" + bytes(50)


@struct
class Pair:
    first: u64
    second: u32
    pad: u32


@struct
class OtherPair:
    first: u32
    second: u32
    third: u64


def test_a_spec_tells_what_it_holds_without_loading(kinds_spec: ObjectSpec) -> None:
    assert {"counts", "pairs", "sockets"} == set(kinds_spec.maps)
    assert kinds_spec.maps["pairs"].max_entries == 16
    assert kinds_spec.programs["first"].section == "tc"
    assert kinds_spec.config["verdict"].doc == "what the tc and XDP programs answer"
    assert kinds_spec.config["verdict"].size == 4


def test_every_shipped_object_loads() -> None:
    assert {"host", "pod", "socket"} <= set(shipped_objects())
    for name in shipped_objects():
        with ObjectSpec.from_file(name).load() as loaded:
            assert loaded.programs


def test_specs_are_values(kinds_spec: ObjectSpec) -> None:
    dropping = kinds_spec.with_config(verdict=2)
    assert dropping != kinds_spec
    assert dropping == kinds_spec.with_config(verdict=2)
    assert kinds_spec.with_maps(pairs=99).maps["pairs"].max_entries == 99
    assert kinds_spec.maps["pairs"].max_entries == 16


def test_one_spec_loads_many_times_with_different_constants(kinds_spec: ObjectSpec) -> None:
    with kinds_spec.with_config(verdict=2).load() as drops, kinds_spec.with_config(verdict=1).load() as keeps:
        assert drops.program("first", programs.TC).run(FRAME).retval == 2
        assert keeps.program("first", programs.TC).run(FRAME).retval == 1


def test_a_constant_that_is_off_takes_code_away(kinds_spec: ObjectSpec) -> None:
    with kinds_spec.with_config(count=False).load() as loaded:
        loaded.program("first", programs.TC).run(FRAME)
        assert loaded.map("counts", maps.Array[u64])[0] == 0


def test_a_loaded_map_is_typed_and_shared_with_the_programs(kinds: Object) -> None:
    counts = kinds.map("counts", maps.Array[u64])
    kinds.program("first", programs.TC).run(FRAME, repeat=5)
    assert counts[0] == 5


def test_a_wrong_layout_is_refused_when_bound_showing_both_sides(kinds: Object) -> None:
    with kinds.map("pairs", maps.Hash[u32, Pair]) as pairs:
        pairs[1] = Pair(2, 3, 0)
        assert pairs[1].second == 3
    with pytest.raises(LayoutError) as caught:
        kinds.map("pairs", maps.Hash[u32, OtherPair])
    assert "first" in str(caught.value)
    assert "OtherPair" in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda spec: spec.with_config(verdikt=1), "did you mean 'verdict'"),
        (lambda spec: spec.with_config(count=300), "does not fit"),
        (lambda spec: spec.with_maps(pair=1), "did you mean 'pairs'"),
        (lambda spec: spec.with_maps(pairs=0), "cannot have 0 entries"),
        (lambda spec: spec.with_maps(pairs=2.5), r"cannot have 2\.5 entries"),
    ],
)
def test_unknown_names_and_bad_values_are_told_before_loading(kinds_spec: ObjectSpec, ask, said: str) -> None:
    with pytest.raises(ObjectError, match=said):
        ask(kinds_spec)


def test_unknown_names_in_a_loaded_object(kinds: Object) -> None:
    with pytest.raises(ObjectError, match="did you mean 'counts'"):
        kinds.map("count", maps.Array[u64])
    with pytest.raises(ObjectError, match="did you mean 'first'"):
        kinds.program("fist", programs.TC)
    with pytest.raises(ObjectError, match="XDP is type 6"):
        kinds.program("first", programs.XDP)


@pytest.mark.parametrize("image", [b"", b"not an object", b"\x7fELF" + bytes(200)])
def test_bytes_that_are_no_object(image: bytes) -> None:
    with pytest.raises(ObjectError, match="broken is not a usable BPF object"):
        ObjectSpec.from_bytes(image, name="broken").load()


def test_files_that_are_not_there() -> None:
    with pytest.raises(ObjectError, match="no object 'podd' is shipped: did you mean 'pod'"):
        ObjectSpec.from_file("podd")
    with pytest.raises(ObjectError, match="No such file"):
        ObjectSpec.from_file(Path("/nonexistent/x.bpf.o"))


def test_use_after_close(kinds_spec: ObjectSpec) -> None:
    loaded = kinds_spec.load()
    program = loaded.program("first", programs.TC)
    loaded.close()
    loaded.close()
    with pytest.raises(ClosedError):
        program.run(FRAME)
    with pytest.raises(ClosedError):
        loaded.map("counts", maps.Array[u64])


def test_maps_are_shared_between_objects_by_reuse(kinds_spec: ObjectSpec, kinds: Object) -> None:
    with kinds_spec.load(reuse=kinds.maps) as second:
        second.program("first", programs.TC).run(FRAME)
    assert kinds.map("counts", maps.Array[u64])[0] == 1


def test_maps_may_come_first_and_programs_one_by_one(kinds_spec: ObjectSpec) -> None:
    with kinds_spec.load(programs=()) as loaded:
        assert not loaded.program_fds
        with pytest.raises(ObjectError, match=r"no program 'frist'.*first"):
            loaded.load_programs("frist")
        loaded.load_programs("first")
        loaded.program("first", programs.TC).run(FRAME)
        assert loaded.map("counts", maps.Array[u64])[0] == 1
        assert set(loaded.program_fds) == {"first"}
    with pytest.raises(ClosedError):
        loaded.load_programs("first")
    with pytest.raises(ObjectError, match=r"no program 'frist'.*first"):
        kinds_spec.load(programs=["frist"])


def test_programs_that_share_variables_are_loaded_at_once() -> None:
    source = """
        #include <linux/bpf.h>
        #include <bpf/bpf_helpers.h>
        int seen;
        SEC("tc") int count(struct __sk_buff *skb) { return seen++; }
    """
    refused = pytest.raises(ObjectError, match=r"counting are to be loaded at once: they share counting\.bss")
    with compile(source, name="counting").load(programs=()) as loaded, refused:
        loaded.load_programs("count")


def test_reuse_refuses_a_map_of_another_shape(kinds_spec: ObjectSpec) -> None:
    with (
        maps.Hash[u32, u64].create("pairs", 4) as other,
        pytest.raises(LayoutError, match="value size 8 instead of 16"),
    ):
        kinds_spec.load(reuse={"pairs": other})


def test_pinned_maps_outlive_the_object(kinds_spec: ObjectSpec, pins: PinDir) -> None:
    with kinds_spec.load(pins=pins) as first:
        first.program("first", programs.TC).run(FRAME, repeat=3)
    assert pins.maps == ["counts", "pairs", "sockets"]
    with kinds_spec.load(pins=pins) as second:
        assert second.map("counts", maps.Array[u64])[0] == 3


def test_a_pin_directory_must_be_on_bpffs(kinds_spec: ObjectSpec, tmp_path: Path) -> None:
    with pytest.raises(BpffsError, match="mount -t bpf bpf"):
        kinds_spec.load(pins=PinDir(tmp_path / "pins"))
    assert not (tmp_path / "pins").exists()


def test_a_pair_has_the_size_of_its_c_twin() -> None:
    assert layout_of(Pair).size == 16
