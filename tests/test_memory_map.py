"""The map has every buffer where the real allocator put it, and follows its rule elsewhere."""

from __future__ import annotations

import dataclasses
import doctest
import re
from collections import Counter

import golden
import pytest
from golden import changed, overlay
from hypothesis import given, settings
from hypothesis import strategies as st

from npu_matmul import lowering, memory_map, memory_rules
from npu_matmul.lowering import depth_at, dma_ends, pools
from npu_matmul.memory_map import STACK, Buffer, Range, bank_aware, basic_sequential, layouts
from npu_matmul.mlir.elaborate import overlay_of
from npu_matmul.mlir.reader import read_design
from npu_matmul.overlay import Overlay, Tile
from npu_matmul.target import CORE, MEMTILE

LOWERED = ["gemm_one_core", "gemm_one_core_race", "sixteen_cores", "transform"]
BANK = 16 * 1024


def lowered(name: str) -> tuple[str, dict[str, Tile]]:
    """What the standard toolchain made of a golden design, and its tiles by their SSA names."""
    text = (golden.FOLDER / "lowered" / f"{name}.mlir").read_text(encoding="utf-8")
    found = re.findall(r"%(\w+) = aie\.tile\((\d+), (\d+)\)", text)
    return text, {name: Tile(int(column), int(row)) for name, column, row in found}


def map_of(text: str, scheme: str = "basic-sequential") -> dict[Tile, list[Range]]:
    return memory_map.memory_map(overlay(text), scheme)


@pytest.mark.parametrize("module", [memory_map, memory_rules, lowering])
def test_the_docstring_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOWERED)
def test_every_buffer_is_where_the_real_allocator_put_it(name: str) -> None:
    text, tiles = lowered(name)
    pattern = r'aie\.buffer\(%(\w+)\) \{address = (\d+) : i32, sym_name = "(\w+)"\}'
    theirs = {(tiles[t], n): int(address) for t, address, n in re.findall(pattern, text)}
    assert len(theirs) == text.count("aie.buffer(") > 5
    ours = {
        (tile, r.name): r.start
        for tile, ranges in map_of(golden.design(name)).items()
        for r in ranges
        if r.name != STACK
    }
    assert ours == theirs


@pytest.mark.parametrize("name", LOWERED)
def test_every_tile_has_as_many_locks_as_the_toolchain_made(name: str) -> None:
    text, tiles = lowered(name)
    theirs = Counter(tiles[tile] for tile in re.findall(r"aie\.lock\(%(\w+),", text))
    ours: Counter[Tile] = Counter()
    for pool in pools(overlay(golden.design(name))):
        ours[pool.tile] += 2 * pool.lock_pairs
    assert ours == theirs


@pytest.mark.parametrize("name", LOWERED)
def test_every_channel_has_the_descriptors_that_the_toolchain_made(name: str) -> None:
    text, tiles = lowered(name)
    theirs: Counter[tuple[Tile, str, int]] = Counter()
    pattern = r"aie\.(?:mem|memtile_dma)\(%(\w+)\)|dma_start\((\w+), (\d+)|(aie\.dma_bd)\("
    tile, channel = "", ("", 0)
    for new_tile, direction, index, descriptor in re.findall(pattern, text):
        tile = new_tile or tile
        channel = (direction, int(index)) if direction else channel
        theirs[(tiles[tile], *channel)] += bool(descriptor) if tile else 0
    ours = {
        (end.tile, end.direction, end.index): end.descriptors
        for end in dma_ends(overlay(golden.design(name)))
        if end.tile.kind != "shim"
    }
    assert ours == {channel: count for channel, count in theirs.items() if count}


def test_sixteen_cores_leave_what_the_real_allocator_left() -> None:
    maps = map_of(golden.design("sixteen_cores"))
    *_, matrices, counters = maps[Tile(2, 4)]
    assert matrices == ("A_L2L1_2_2_cons_buff_1", 55360, 4096)
    assert counters == ("_anonymous10", 59456, 12)
    assert CORE.memory_bytes - counters.end == 6068


def test_equal_layouts_are_told_apart_from_others() -> None:
    maps = map_of(golden.design("sixteen_cores"))
    groups = [(tiles[0], len(tiles), ranges) for tiles, ranges in layouts(maps)]
    assert groups == [(Tile(0, 1), 4, maps[Tile(0, 1)]), (Tile(0, 2), 16, maps[Tile(0, 2)])]
    wider = maps | {Tile(1, 3): [*maps[Tile(1, 3)], Range("more", 60000, 4)]}
    assert [len(tiles) for tiles, _ in layouts(wider)] == [4, 15, 1]
    *others, last = maps[Tile(1, 3)]
    renamed = maps | {Tile(1, 3): [*others, last._replace(name="a_buff_0")]}
    assert [len(tiles) for tiles, _ in layouts(renamed)] == [4, 15, 1]


def test_a_tile_without_a_core_has_no_stack() -> None:
    """The FIFO's buffer does not fit before the pinned one, so it goes behind it."""
    ranges = map_of(golden.design("two_columns"))[Tile(0, 2)]
    assert [r.name for r in ranges] == [
        "rtp0",
        "c0_l1l2_buff_0",
        "b0_l2l1_cons_buff_0",
        "b0_l2l1_cons_buff_1",
        "a_l2l1_0_cons_buff_0",
        "a_l2l1_0_cons_buff_1",
    ]
    assert [r.start for r in ranges] == [1024, 1088, 5184, 7232, 9280, 11328]


def test_a_stack_that_is_not_given_is_the_toolchains() -> None:
    assert map_of(golden.design("gemm_one_core"))[Tile(0, 2)][0] == (STACK, 0, 1024)
    assert map_of(golden.design("transform"))[Tile(0, 2)][0] == (STACK, 0, 2048)


def test_only_cores_that_keep_their_loops_have_counters() -> None:
    for unrolled in ("", "dynamic_objfifo_lowering = false"):
        kept = "dynamic_objfifo_lowering = true"
        text = changed(golden.design("gemm_one_core"), (kept, unrolled))
        assert [r.name for r in map_of(text)[Tile(0, 2)]][-1] == "a_cons_buff_1"
    assert [r.name for r in map_of(golden.design("transform"))[Tile(0, 2)]][-1] == (
        "in_l2l1_cons_buff_1"
    )


def test_an_unpinned_buffer_is_placed_by_its_size() -> None:
    text = changed(golden.design("gemm_one_core"), (", address = 1024 : i32", ""))
    names = [r.name for r in map_of(text)[Tile(0, 2)]]
    assert names[-3:] == ["a_cons_buff_1", "rtp", "_anonymous0"]


PIECES = """\
aie.device(npu1_1col) {
  %shim = aie.tile(0, 0)
  %mem = aie.tile(0, 1)
  %one = aie.tile(0, 2)
  %two = aie.tile(0, 3)
  aie.objectfifo @in(%shim, {%mem}, [2, 3]) : !aie.objectfifo<memref<32xi32>>
  aie.objectfifo @in_1(%mem, {%one}, [5, 2]) : !aie.objectfifo<memref<8xi32>>
  aie.objectfifo @in_2(%mem, {%two}, [5, 2]) : !aie.objectfifo<memref<24xi32>>
  aie.objectfifo.link [@in] -> [@in_1, @in_2]([] [0, 8])
  aie.objectfifo @out_1(%one, {%mem}, [2, 5]) : !aie.objectfifo<memref<8xi32>>
  aie.objectfifo @out_2(%two, {%mem}, [2, 5]) : !aie.objectfifo<memref<24xi32>>
  aie.objectfifo @out(%mem, {%shim}, [4, 2]) : !aie.objectfifo<memref<32xi32>>
  aie.objectfifo.link [@out_1, @out_2] -> [@out]([0, 8] [])
}
"""


def test_linked_fifos_share_the_buffers_of_the_whole() -> None:
    found = {pool.name: pool for pool in pools(overlay(PIECES)) if pool.tile == Tile(0, 1)}
    shape = {
        name: (pool.depth, pool.element_bytes, pool.lock_pairs) for name, pool in found.items()
    }
    assert shape == {"in_cons": (3, 128, 2), "out": (4, 128, 2)}


def test_the_whole_has_a_descriptor_for_each_piece() -> None:
    ends = {(e.fifo.name, e.direction): e for e in dma_ends(overlay(PIECES)) if e.tile.row == 1}
    counts = {key: (end.index, end.descriptors) for key, end in ends.items()}
    assert counts == {
        ("in", "S2MM"): (0, 3 * 2),
        ("in_1", "MM2S"): (0, 3),
        ("in_2", "MM2S"): (1, 3),
        ("out_1", "S2MM"): (1, 4),
        ("out_2", "S2MM"): (2, 4),
        ("out", "MM2S"): (2, 4 * 2),
    }


def test_a_fifo_that_ends_in_a_memtile_alone_has_its_own_buffers() -> None:
    text = PIECES.replace("aie.objectfifo.link [@in] -> [@in_1, @in_2]([] [0, 8])", "")
    read = overlay_of(read_design(text), refused=[])
    names = {(p.name, p.depth) for p in pools(read) if p.tile == Tile(0, 1)}
    assert names == {("in_cons", 3), ("in_1", 5), ("in_2", 5), ("out", 4)}


DEPTHS = """\
aie.device(npu1_1col) {
  %shim = aie.tile(0, 0)
  %core = aie.tile(0, 2)
  aie.objectfifo @in(%shim, {%core}, DEPTH) : !aie.objectfifo<memref<16xi32>>
  aie.core(%core) {
    %v = aie.objectfifo.acquire @in(Consume, SIZE) : !aie.objectfifosubview<memref<16xi32>>
    aie.objectfifo.release @in(Consume, SIZE)
    aie.end
  }
}
"""


@pytest.mark.parametrize(
    ("depth", "acquired", "made"),
    [
        ("1 : i32", 1, 1),
        ("2 : i32", 1, 2),
        ("4 : i32", 1, 2),
        ("4 : i32", 2, 3),
        ("4 : i32", 3, 4),
        ("2 : i32", 2, 3),  # as in mlir-aie's test broadcast_self_adjusted_depths
        ("4 : i32", 4, 5),
        ("[2, 4]", 1, 4),
        ("[4, 1]", 1, 1),
        ("[2, 2]", 2, 2),
    ],
)
def test_a_core_has_as_many_buffers_as_the_toolchain_makes(
    depth: str, acquired: int, made: int
) -> None:
    read = overlay(DEPTHS.replace("DEPTH", depth).replace("SIZE", str(acquired)))
    assert depth_at(read, read.fifos["in"], 1) == made
    names = [r.name for r in memory_map.memory_map(read)[Tile(0, 2)]]
    assert names == [STACK, *(f"in_cons_buff_{number}" for number in range(made))]


def test_the_most_that_a_core_acquires_counts() -> None:
    two = "aie.objectfifo.acquire @in(Consume, 2) : !aie.objectfifosubview<memref<16xi32>>"
    text = DEPTHS.replace("DEPTH", "4 : i32").replace("SIZE", "1")
    for place in ("    %v =", "    aie.end"):
        more = f"    %w = {two} aie.objectfifo.release @in(Consume, 2)\n{place}"
        read = overlay(changed(text, (place, more)))
        assert depth_at(read, read.fifos["in"], 1) == 3


def test_where_no_core_acquires_the_depth_is_taken_at_its_word() -> None:
    core = DEPTHS[DEPTHS.index("  aie.core") :]
    read = overlay(DEPTHS.replace(core, "}\n").replace("DEPTH", "4 : i32"))
    assert depth_at(read, read.fifos["in"], 1) == 4


def named(*sizes: int) -> list[Buffer]:
    return [Buffer(f"b{number}", size) for number, size in enumerate(sizes)]


def starts(ranges: list[Range]) -> dict[str, int | None]:
    return {r.name: r.start for r in ranges}


def test_basic_sequential_packs_by_size_and_keeps_the_order_of_equals() -> None:
    assert basic_sequential(100, named(8, 40, 8, 40, 3), CORE) == [
        ("b1", 100, 40),
        ("b3", 140, 40),
        ("b0", 180, 8),
        ("b2", 188, 8),
        ("b4", 196, 3),
    ]


def test_basic_sequential_goes_round_pinned_buffers() -> None:
    pinned = [Buffer("late", 16, 300), Buffer("early", 16, 150)]
    found = starts(basic_sequential(100, [*pinned, *named(60, 50, 40)], CORE))
    assert found == {"early": 150, "late": 300, "b0": 166, "b1": 226, "b2": 316}


def test_a_gap_before_a_pinned_buffer_is_used_when_it_is_wide_enough() -> None:
    found = starts(basic_sequential(100, [Buffer("p", 16, 160), *named(60, 50)], CORE))
    assert found == {"p": 160, "b0": 100, "b1": 176}


def test_a_buffer_pinned_into_the_stack_takes_the_others_there() -> None:
    """The real rule: it goes on behind the pinned buffer, wherever that is."""
    found = starts(basic_sequential(1024, [Buffer("p", 64, 512), *named(32)], CORE))
    assert found == {"p": 512, "b0": 576}


def test_basic_sequential_places_what_does_not_fit_as_well() -> None:
    assert starts(basic_sequential(0, named(40_000, 40_000), CORE)) == {"b0": 0, "b1": 40_000}


def test_bank_aware_takes_the_banks_in_turn() -> None:
    found = starts(bank_aware(2048, named(*[4096] * 6), CORE))
    assert list(found.values()) == [2048, BANK, 2 * BANK, 3 * BANK, 6144, BANK + 4096]


def test_bank_aware_starts_after_the_last_bank_used() -> None:
    """10,000 fits bank 0 no more than 16,384 does; 100 follows in the bank after."""
    found = starts(bank_aware(8192, named(16_384, 10_000, 100, 90), CORE))
    assert found == {"b0": BANK, "b1": 2 * BANK, "b2": 3 * BANK, "b3": 8192}


def test_bank_aware_crosses_no_bank() -> None:
    found = starts(bank_aware(1024, named(BANK, BANK, BANK, BANK, BANK + 4), CORE))
    assert found == {"b4": None, "b0": BANK, "b1": 2 * BANK, "b2": 3 * BANK, "b3": None}


def test_a_memtile_has_banks_of_its_own() -> None:
    found = starts(bank_aware(0, named(*[65_536] * 9), MEMTILE))
    assert list(found.values()) == [*range(0, 8 * 65_536, 65_536), None]


def test_what_is_below_a_pinned_buffer_in_its_bank_is_lost() -> None:
    pinned = Buffer("p", 64, BANK + 8192)
    found = starts(bank_aware(0, [pinned, *named(8192, 8192)], CORE))
    assert found == {"p": BANK + 8192, "b0": 0, "b1": 2 * BANK}


@pytest.mark.parametrize("address", [512, 4096])
def test_pinned_buffers_have_no_room_below_the_stack_or_earlier_ones(address: int) -> None:
    buffers = [Buffer("first", 64, 8192), Buffer("second", 64, address)]
    assert starts(bank_aware(1024, buffers, CORE)) == {"first": 8192, "second": None}


def test_scheme_is_the_one_asked_for() -> None:
    text = golden.design("gemm_one_core")
    ranges = {r.name: r.start for r in map_of(text, "bank-aware")[Tile(0, 2)]}
    assert ranges == {
        STACK: 0,
        "rtp": 1024,
        "c_buff_0": 1088,
        "c_buff_1": BANK,
        "b_cons_buff_0": 2 * BANK,
        "b_cons_buff_1": 3 * BANK,
        "a_cons_buff_0": 1088 + 1024,
        "a_cons_buff_1": BANK + 1024,
        "_anonymous0": 2 * BANK + 256,
    }


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    stack=st.integers(0, 20_000),
    sizes=st.lists(st.integers(1, 20_000), max_size=12),
    pins=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 1000)), max_size=3),
)
def test_nothing_is_placed_twice_and_nothing_is_lost(
    stack: int, sizes: list[int], pins: list[tuple[int, int]]
) -> None:
    """Of buffers pinned behind the stack and apart from each other, under both schemes."""
    addresses = {20 * 1024 + 1024 * place: size for place, size in pins}
    pinned = [Buffer(f"p{a}", size, a) for a, size in sorted(addresses.items())]
    buffers = [*pinned, *named(*sizes)]
    for allocate in (basic_sequential, bank_aware):
        ranges = allocate(stack, buffers, CORE)
        assert Counter((r.name, r.bytes) for r in ranges) == Counter((b[0], b[1]) for b in buffers)
        placed = sorted((r.start, r.end) for r in ranges if r.start is not None)
        edges = [(0, stack), *placed]
        if allocate is bank_aware and stack > CORE.bank_bytes:
            continue  # which is refused: the stack may not cross a bank either
        assert all(end <= start for (_, end), (start, _) in zip(edges, placed, strict=False))


def test_map_follows_the_overlay_alone() -> None:
    read: Overlay = overlay(golden.design("gemm_one_core"))
    core = dataclasses.replace(read.cores[0], stack_bytes=2048, dynamic=False)
    ranges = memory_map.memory_map(dataclasses.replace(read, cores=(core,)))[Tile(0, 2)]
    assert ranges[:2] == [(STACK, 0, 2048), ("rtp", 1024, 64)]
    assert "_anonymous0" not in {r.name for r in ranges}
