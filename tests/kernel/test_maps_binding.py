"""Typed views of a loaded object's maps: compared with what C declared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from k8sdatapath import maps
from k8sdatapath.compiler import compile
from k8sdatapath.errors import ClosedError, LayoutError, NotSupportedError
from k8sdatapath.layout import be16, network, raw, struct, u16, u32, u64, zeros
from k8sdatapath.objects import Object
from k8sdatapath.pybpf.maps import MapInfo, MapType, create, info, open_by_id, possible_cpus
from tests.support.sample import Point, Sample

pytestmark = pytest.mark.kernel
DATA = Path(__file__).parent.parent / "data"


@struct
class Holey:
    kind: Annotated[bytes, raw(1)]
    pad: ClassVar = zeros(3)
    count: u32


@struct
class Tally:
    packets: u64
    bytes: u64


@pytest.fixture(scope="module")
def loaded() -> Iterator[Object]:
    with compile(DATA / "maps.bpf.c").load() as loaded:
        yield loaded


def test_twins_bind(loaded: Object) -> None:
    assert repr(loaded.map("samples", maps.Hash[Point, Sample])) == "<Hash samples Point->Sample 0/16>"
    zones = loaded.map("zones", maps.LPMTrie[network, Tally])
    assert repr(zones) == "<LPMTrie zones network->Tally 0/16>"
    holes = loaded.map("holes", maps.PerCpuArray[Holey])
    assert holes[0] == (Holey(b"\0", 0),) * possible_cpus()


def test_a_struct_that_differs_is_shown_beside_c_s(loaded: Object) -> None:
    @struct
    class Swapped:
        y: be16
        x: u16

    with pytest.raises(LayoutError) as error:
        loaded.map("samples", maps.Hash[Swapped, Sample])
    assert str(error.value).splitlines() == [
        "map 'samples', key: C and Python differ",
        "    byte  C: struct point (4 bytes)   Python: Swapped (4 bytes)",
        "  !    0  __u16 x                     y: be16",
        "  !    2  __be16 y                    x: u16",
    ]
    with pytest.raises(LayoutError, match="map 'samples', value: C and Python differ"):
        loaded.map("samples", maps.Hash[Point, u64])
    with pytest.raises(LayoutError, match="map 'holes', value: C and Python differ"):
        loaded.map("holes", maps.PerCpuArray[Tally])


def test_a_kind_that_is_not_the_map_s_is_refused(loaded: Object) -> None:
    with pytest.raises(LayoutError, match=r"map 'samples' is of type HASH, Array\[Sample\] needs ARRAY"):
        loaded.map("samples", maps.Array[Sample])


def test_sizes_are_compared_where_there_is_no_type_information() -> None:
    with maps.Hash[u32, u64].create("kdmap_plain", 4) as plain:
        assert isinstance(maps.bind(maps.Hash[u32, u64], plain.fd), maps.Hash)
        with pytest.raises(LayoutError, match="map 'kdmap_plain', value: 8 bytes in the kernel, 4 in u32"):
            maps.bind(maps.Hash[u32, u32], plain.fd)


def test_any_map_binds_as_bytes(loaded: Object) -> None:
    untyped = loaded.maps
    assert {name: type(each).__name__ for name, each in untyped.items()} == {
        "samples": "Hash",
        "odds": "Hash",
        "holes": "PerCpuArray",
        "zones": "LPMTrie",
        "events": "RingBuffer",
        "jumps": "ProgArray",
        "peers": "SockHash",
        "numbered": "SockMap",
        "tables": "HashOfMaps",
    }
    key, value = bytes(4), bytes(64)
    samples: Any = untyped["samples"]
    samples[key] = value
    assert dict(samples) == {key: value}
    del samples[key]


def test_a_kind_this_library_has_no_class_for_is_still_a_map() -> None:
    with create(MapType.QUEUE, "kdmap_queue", 0, 4, 8) as fd:
        assert repr(maps.bind_untyped(fd)).startswith("<Map kdmap_queue ")


def test_who_owns_a_map_closes_it() -> None:
    with maps.Array[u32].create("kdmap_owned", 2) as made:
        with maps.bind(maps.Array[u32], made.fd) as borrowed:
            borrowed[0] = 5
        assert made[0] == 5
        mine = maps.bind(maps.Array[u32], open_by_id(made.info.id), owned=True)
        assert mine[0] == 5
        mine.close()
        with pytest.raises(ClosedError):
            mine[0]
        number = made.fd.dup()
        with pytest.raises(LayoutError):
            maps.bind(maps.Hash, number, owned=True)
        assert number.closed


def test_the_kernel_tells_what_a_map_is() -> None:
    with maps.LPMTrie[network, u32].create("kdmap_info_and_more", 4) as made:
        about = info(made.fd)
        assert about == MapInfo(MapType.LPM_TRIE, about.id, "kdmap_info_and_", 20, 4, 4, flags=1)


def test_a_kind_takes_as_many_types_as_it_has() -> None:
    with pytest.raises(TypeError, match="Hash takes 2 types, not 1"):
        maps.Hash[u32]
    with pytest.raises(TypeError, match="ProgArray takes 0 types, not 1"):
        maps.ProgArray[u32]
    assert maps.Hash[u32, u64] is maps.Hash[u32, u64]
    assert maps.Hash[u32, u64].__name__ == "Hash[u32, u64]"


def test_cookies_need_values_of_eight_bytes(loaded: Object) -> None:
    numbered = loaded.map("numbered", maps.SockMap)
    assert list(numbered) == [0, 1, 2, 3]
    with pytest.raises(NotSupportedError, match="reading cookies"):
        numbered.cookie(1)
