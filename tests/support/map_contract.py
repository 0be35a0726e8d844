"""What maps promise, whoever keeps their elements; each tier runs it with a fixture ``make`` of its own."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8sdatapath.errors import (
    ClosedError,
    ContractError,
    KernelError,
    KeyExistsError,
    KeyNotFoundError,
    LayoutError,
    MapFullError,
)
from k8sdatapath.layout import addr, be16, layout_of, network, raw, struct, u8, u32, u64, zeros
from k8sdatapath.maps import MMAPABLE, Array, Hash, LPMTrie, LRUHash, PerCpuArray, PerCpuHash
from k8sdatapath.pybpf.maps import possible_cpus

Make = Callable[..., Any]


@struct
class Peer:
    addr: addr
    port: be16
    protocol: u8
    pad: ClassVar = zeros(1)


@struct
class Rule:
    """A trie's key of one's own: an identity, then a port that may be cut to a prefix."""

    bits: u32
    identity: u32
    port: be16
    pad: ClassVar = zeros(2)


WEB = Peer(ip_address("10.0.0.1"), 80, 6)
DNS = Peer(ip_address("fd00::1"), 53, 17)

# ---- Hash ----


def test_a_hash_is_a_mapping(make: Make) -> None:
    peers = make(Hash[Peer, u64], "kdmap_peers", 8)
    peers[WEB] = 1
    peers[DNS] = 2
    assert peers[WEB] == 1
    assert dict(peers) == peers == {WEB: 1, DNS: 2}
    assert (len(peers), set(peers), sorted(peers.values())) == (2, {WEB, DNS}, [1, 2])
    assert set(peers.items()) == {(WEB, 1), (DNS, 2)}
    assert WEB in peers
    assert 2 in peers.values()
    assert (DNS, 3) not in peers.items()
    assert peers.setdefault(WEB, 9) == 1
    assert peers.get(Peer(ip_address("::"), 0, 0)) is None
    del peers[WEB]
    assert WEB not in peers
    peers.clear()
    assert not peers


def test_a_missing_key_is_named_with_its_map(make: Make) -> None:
    counts = make(Hash[u32, u32], "kdmap_counts", 4)
    with pytest.raises(KeyNotFoundError, match="no such key in map 'kdmap_counts': 7") as error:
        counts[7]
    assert error.value.args[0] == 7
    with pytest.raises(KeyNotFoundError, match="7"):
        del counts[7]
    with pytest.raises(KeyNotFoundError, match="7"):
        counts.pop(7)
    with pytest.raises(KeyNotFoundError, match="7"):
        counts.replace(7, 1)
    assert counts.pop(7, None) is None


def test_insert_adds_and_replace_changes(make: Make) -> None:
    counts = make(Hash[u32, u32], "kdmap_counts", 4)
    counts.insert(1, 10)
    with pytest.raises(KeyExistsError, match="exists already in map 'kdmap_counts': 1"):
        counts.insert(1, 11)
    assert counts[1] == 10
    counts.replace(1, 12)
    assert counts.pop(1) == 12
    assert not counts


def test_a_full_hash_refuses_and_stays_as_it_was(make: Make) -> None:
    counts = make(Hash[u32, u32], "kdmap_counts", 4)
    counts.update_many({number: number for number in range(4)})
    with pytest.raises(MapFullError, match="map 'kdmap_counts' is full: it holds at most 4 entries"):
        counts[4] = 4
    counts[3] = 33  # a key that is there fits always
    assert counts == {0: 0, 1: 1, 2: 2, 3: 33}


def test_a_bulk_that_does_not_fit_says_how_much_of_it_is_in(make: Make) -> None:
    counts = make(Hash[u32, u32], "kdmap_counts", 4)
    with pytest.raises(MapFullError) as error:
        counts.update_many((number, number) for number in range(9))
    assert error.value.written == 4
    assert counts == {0: 0, 1: 1, 2: 2, 3: 3}


def test_bulk_over_many_chunks(make: Make) -> None:
    table = make(Hash[u32, u64], "kdmap_many", 10_000)
    wanted = {number: number * number for number in range(10_000)}
    table.update_many(wanted)
    assert dict(table.items()) == wanted
    assert len(table) == 10_000
    assert table.lookup_many([3, 20_000, 4]) == {3: 9, 4: 16}
    assert table.delete_many([1, 2, 2, 20_000, 3]) == 3
    assert table.delete_many(range(10_000)) == 9_997
    assert table.items_packed() == (b"", b"", 0)


def test_bulk_of_nothing(make: Make) -> None:
    table = make(Hash[u32, u64], "kdmap_empty", 4)
    table.update_many({})
    table.update_packed(b"", b"")
    assert (table.lookup_many([]), table.delete_many([]), list(table)) == ({}, 0, [])


@pytest.mark.parametrize(
    "buffer",
    [bytes, bytearray, memoryview, lambda data: array("I", data), lambda data: np.frombuffer(data, "u4")],
    ids=["bytes", "bytearray", "memoryview", "array", "numpy"],
)
def test_packed_elements_come_from_any_buffer(make: Make, buffer: Callable[[bytes], Any]) -> None:
    table = make(Hash[u32, u32], "kdmap_packed", 16)
    keys, values = layout_of(u32).pack_many(range(16)), layout_of(u32).pack_many(range(100, 116))
    table.update_packed(buffer(keys), buffer(values))
    assert table == {number: 100 + number for number in range(16)}
    keys, values, count = table.items_packed()
    assert count == 16
    assert set(np.frombuffer(values, "u4") - np.frombuffer(keys, "u4")) == {100}


def test_packed_keys_are_looked_up_and_deleted(make: Make) -> None:
    table = make(Hash[u32, u64], "kdmap_packed", 16)
    table.update_many({1: 10, 2: 20, 3: 30})
    values, found = table.lookup_packed(layout_of(u32).pack_many([3, 9, 1]))
    assert list(found) == [True, False, True]
    assert np.frombuffer(values, "u8")[[0, 2]].tolist() == [30, 10]
    assert table.delete_packed(array("I", [1, 9, 3, 1])) == 2
    assert table == {2: 20}
    assert table.lookup_packed(b"") == (b"", b"")
    for keys in (bytes(7), np.zeros(4, "u4")[::2]):
        for call in (table.lookup_packed, table.delete_packed):
            with pytest.raises(LayoutError, match="map 'kdmap_packed'"):
                call(keys)


def test_packed_elements_that_do_not_fit(make: Make) -> None:
    table = make(Hash[Peer, u32], "kdmap_packed", 2)
    keys = np.zeros(3, [("addr", "u4", 4), ("port", ">u2"), ("protocol", "u1"), ("pad", "u1")])
    keys["port"] = [1, 2, 3]
    with pytest.raises(MapFullError) as error:
        table.update_packed(keys, np.zeros(3, "u4"))
    assert error.value.written == 2
    assert sorted(peer.port for peer in table) == [1, 2]


def test_packed_elements_of_a_wrong_size_are_refused(make: Make) -> None:
    table = make(Hash[u32, u64], "kdmap_packed", 16)
    for keys, values, count in (
        (bytes(8), bytes(8), None),
        (bytes(8), bytes(16), 3),
        (bytes(7), bytes(8), 1),
        (np.zeros(4, "u4")[::2], bytes(16), 2),
    ):
        with pytest.raises(LayoutError, match="map 'kdmap_packed'"):
            table.update_packed(keys, values, count)
    assert not table


def test_values_that_do_not_fit_are_refused_before_anything_is_written(make: Make) -> None:
    table = make(Hash[u32, u8], "kdmap_fit", 16)
    with pytest.raises(LayoutError, match="u8 holds whole numbers from 0 to 255, not 256"):
        table.update_many({1: 1, 2: 256})
    with pytest.raises(LayoutError, match="u32 holds"):
        table["1"] = 1
    assert not table


def test_bytes_as_they_are(make: Make) -> None:
    table = make(Hash[Annotated[bytes, raw(3)], Annotated[bytes, raw(2)]], "kdmap_raw", 4)
    table[b"abc"] = bytearray(b"xy")
    assert dict(table) == {b"abc": b"xy"}
    with pytest.raises(LayoutError, match="exactly 3 bytes are needed, not 2"):
        table[b"ab"] = b"xy"


def test_a_map_without_sizes_cannot_be_made(make: Make) -> None:
    with pytest.raises(LayoutError, match="say what it holds"):
        make(Hash, "kdmap_bare", 4)


def test_looks(make: Make) -> None:
    table = make(Hash[u32, Annotated[bytes, raw(8)]], "kdmap_looks", 64)
    table.update_many(dict.fromkeys(range(30), b"<script>"))
    assert repr(table) == "<Hash kdmap_looks u32->raw(8) 30/64>"
    page = table._repr_html_()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert page.count("<tr>") == 21
    assert repr(make(Array[u64], "kdmap_array", 3)) == "<Array kdmap_array u64[3]>"


def test_a_closed_map_says_so(make: Make) -> None:
    table = make(Hash[u32, u32], "kdmap_closed", 4)
    table.close()
    table.close()
    assert repr(table) == "<Hash kdmap_closed closed>"
    for use in (lambda: table[1], lambda: list(table), lambda: table.update_many({1: 1})):
        with pytest.raises(ClosedError, match="map kdmap_closed is closed"):
            use()


def test_a_closed_array_says_so(make: Make) -> None:
    slots = make(Array[u32], "kdmap_closed", 4)
    slots.close()
    for use in (lambda: len(slots), lambda: slots[9], lambda: slots[1:], lambda: list(slots)):
        with pytest.raises(ClosedError, match="map kdmap_closed is closed"):
            use()


@pytest.mark.parametrize("name", ["kd\0map", "kd map", "k\xf6"])
def test_a_name_that_no_map_can_have(make: Make, name: str) -> None:
    with pytest.raises(KernelError, match="a map's name is made of ASCII letters"):
        make(Hash[u32, u32], name, 4)


@pytest.mark.parametrize("count", [-1, 1 << 40, 2.5])
def test_a_size_that_no_map_can_have(make: Make, count: Any) -> None:
    with pytest.raises(KernelError, match=f"it cannot have {count} entries"):
        make(Hash[u32, u32], "kdmap_size", count)


NUMBERS = st.integers(0, 5)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["set", "insert", "replace", "pop", "get"]), NUMBERS, NUMBERS),
        st.tuples(st.sampled_from(["update_many", "delete_many"]), st.lists(NUMBERS), NUMBERS),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(operations=OPERATIONS)
def test_a_hash_does_what_a_dict_does(make: Make, operations: list[tuple[str, Any, int]]) -> None:
    table, model = make(Hash[u32, u32], "kdmap_model", 6), {}
    with table:
        for verb, key, value in operations:
            match verb:
                case "set":
                    table[key] = model[key] = value
                case "insert" if key in model:
                    with pytest.raises(KeyExistsError):
                        table.insert(key, value)
                case "insert":
                    table.insert(key, value)
                    model[key] = value
                case "replace" if key in model:
                    table.replace(key, value)
                    model[key] = value
                case "replace":
                    with pytest.raises(KeyNotFoundError):
                        table.replace(key, value)
                case "pop":
                    assert table.pop(key, None) == model.pop(key, None)
                case "get":
                    assert table.get(key) == model.get(key)
                case "update_many":
                    table.update_many((each, value) for each in key)
                    model.update((each, value) for each in key)
                case "delete_many":
                    assert table.delete_many(key) == len(model.keys() & set(key))
                    model = {each: model[each] for each in model.keys() - set(key)}
        assert table == model


# ---- LRUHash ----


def test_an_lru_hash_makes_room(make: Make) -> None:
    flows = make(LRUHash[u32, u32], "kdmap_flows", 64)
    flows.update_many({number: number for number in range(1000)})
    assert 0 < len(flows) <= 64
    assert flows[999] == 999
    assert repr(flows).startswith("<LRUHash kdmap_flows u32->u32 ")


# ---- Array ----


def test_an_array_is_a_sequence_of_fixed_length(make: Make) -> None:
    slots = make(Array[u32], "kdmap_slots", 6)
    assert list(slots) == [0] * 6
    slots[0], slots[-1] = 5, 7
    slots.update_many({2: 1, 3: 2})
    assert (len(slots), slots[0], slots[5], slots[-6]) == (6, 5, 7, 5)
    assert slots[1:5] == [0, 1, 2, 0]
    assert slots[::-1] == list(reversed(slots)) == [7, 0, 2, 1, 0, 5]
    assert 7 in slots
    assert slots.index(2) == 3
    assert slots.lookup_many([0, 2]) == {0: 5, 2: 1}


def test_an_index_outside_is_refused(make: Make) -> None:
    slots = make(Array[u32], "kdmap_slots", 4)
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"index {index} is outside map 'kdmap_slots' of 4 entries"):
            slots[index] = 1
        with pytest.raises(IndexError):
            slots[index]


def test_an_array_seen_as_memory(make: Make) -> None:
    rows = make(Array[u32], "kdmap_mapped", 4, flags=MMAPABLE)
    words = rows.view().cast("Q")  # rows of 8 bytes
    words[1] = 77
    assert list(rows) == [0, 77, 0, 0]
    rows[2] = 5
    assert words.tolist() == [0, 77, 5, 0]
    np.frombuffer(rows.view(), "u8")[3] = 9
    assert rows[3] == 9
    rows.close()
    words[0] = 1  # what is still looked at stays


def test_only_an_array_made_for_it_can_be_seen_as_memory(make: Make) -> None:
    with pytest.raises(ContractError, match="map 'kdmap_plain' was made without MMAPABLE"):
        make(Array[u32], "kdmap_plain", 4).view()


# ---- one value per CPU ----


def test_one_value_per_cpu(make: Make) -> None:
    cpus = possible_cpus()
    counts = make(PerCpuArray[u32], "kdmap_percpu", 3)
    assert counts[0] == (0,) * cpus
    counts[1] = range(cpus)
    counts.update_many({2: (7,) * cpus})
    assert list(counts) == [(0,) * cpus, tuple(range(cpus)), (7,) * cpus]
    with pytest.raises(LayoutError, match=f"{cpus} values are needed, one per CPU, not 1"):
        counts[0] = [1] if cpus > 1 else []


def test_a_hash_of_one_value_per_cpu(make: Make) -> None:
    cpus = possible_cpus()
    counts = make(PerCpuHash[u32, Peer], "kdmap_percpu", 3)
    counts[1] = [WEB] * cpus
    counts.update_many({2: [DNS] * cpus})
    assert counts == {1: (WEB,) * cpus, 2: (DNS,) * cpus}
    assert sum(peer.port for peer in counts.pop(1)) == 80 * cpus
    assert repr(counts) == "<PerCpuHash kdmap_percpu u32->Peer per CPU 1/3>"


# ---- LPMTrie ----


def test_a_trie_finds_the_longest_prefix(make: Make) -> None:
    zones = make(LPMTrie[network, u32], "kdmap_zones", 16)
    zones.update_many(
        {
            ip_network("0.0.0.0/0"): 1,
            ip_network("10.0.0.0/8"): 2,
            ip_network("10.1.0.0/16"): 3,
            ip_network("fd00::/8"): 4,
        }
    )
    found = {
        text: zones.match(ip_address(text)) for text in ("10.1.2.3", "10.2.0.1", "8.8.8.8", "fd00::1", "::1")
    }
    assert found == {"10.1.2.3": 3, "10.2.0.1": 2, "8.8.8.8": 1, "fd00::1": 4, "::1": None}
    assert zones.match(ip_network("10.1.0.0/12", strict=False)) == 2


def test_a_trie_as_a_mapping_is_exact(make: Make) -> None:
    zones = make(LPMTrie[network, u32], "kdmap_zones", 16)
    wide, narrow, narrower = (ip_network(f"10.0.0.0/{length}") for length in (8, 16, 24))
    zones.insert(wide, 1)
    zones[narrower] = 3
    assert narrow not in zones
    assert zones.get(narrow) is None
    assert zones.pop(narrow, None) is None
    with pytest.raises(KeyNotFoundError):
        del zones[narrow]
    with pytest.raises(KeyNotFoundError):
        zones.replace(narrow, 2)
    with pytest.raises(KeyExistsError):
        zones.insert(wide, 9)
    assert zones.lookup_many([wide, narrow, narrower]) == {wide: 1, narrower: 3}
    assert zones == {wide: 1, narrower: 3}
    zones.replace(wide, 5)
    assert zones.pop(wide) == 5
    assert zones == {narrower: 3}
    assert zones.delete_many([narrow, narrower]) == 1
    assert not zones


def test_a_trie_of_one_family(make: Make) -> None:
    zones = make(LPMTrie[Annotated[bytes, raw(8)], u32], "kdmap_v4", 4)
    zones[b"\x08\0\0\0\x0a\0\0\0"] = 1
    assert zones.match(b"\x20\0\0\0\x0a\x01\x02\x03") == 1


def test_a_trie_with_keys_of_ones_own(make: Make) -> None:
    rules = make(LPMTrie[Rule, u32], "kdmap_rules", 8)
    rules[Rule(32, 7, 0)] = 1  # any port
    rules[Rule(48, 7, 80)] = 2
    assert rules.match(Rule(48, 7, 80)) == 2
    assert rules.match(Rule(48, 7, 81)) == 1
    assert rules.match(Rule(48, 8, 80)) is None


def test_a_trie_can_be_full(make: Make) -> None:
    zones = make(LPMTrie[network, u32], "kdmap_zones", 2)
    with pytest.raises(MapFullError, match="at most 2 entries") as error:
        zones.update_many((ip_network(f"10.{number}.0.0/16"), number) for number in range(3))
    assert error.value.written == 2


def test_a_prefix_longer_than_the_key_is_refused(make: Make) -> None:
    rules = make(LPMTrie[Rule, u32], "kdmap_rules", 8)
    with pytest.raises(KernelError):
        rules[Rule(65, 1, 1)] = 1


NETWORKS = st.builds(
    lambda bits, length: ip_network((bits, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


@settings(max_examples=40)
@given(wanted=st.dictionaries(NETWORKS, NUMBERS, max_size=12), asked=st.lists(NETWORKS, max_size=6))
def test_a_trie_agrees_with_a_plain_search(make: Make, wanted: dict[Any, int], asked: list[Any]) -> None:
    with make(LPMTrie[network, u32], "kdmap_model", 16) as zones:
        zones.update_many(wanted)
        assert zones == wanted
        for each in [*asked, *wanted]:
            over = [net for net in wanted if each.subnet_of(net)]
            longest = max(over, key=lambda net: net.prefixlen, default=None)
            assert zones.match(each) == (None if longest is None else wanted[longest])
            assert (each in zones) == (each in wanted)
        assert zones.delete_many([*wanted, *asked]) == len(wanted)
