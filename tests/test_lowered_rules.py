"""Every rule of lowered modules, with a module that breaks exactly it; the golden ones obey all."""

from __future__ import annotations

import re

import pytest
from golden import changed
from lowered_modules import GOLDEN, INTO, LOOP, OUT_OF, after_line, line_of, machine, module, text

from npu_matmul.lowered.holding import lock_groups, unbalanced_cores
from npu_matmul.lowered.reading import read_lowered
from npu_matmul.lowered.rules import mistakes, refusals
from npu_matmul.mlir.reader import DesignError
from npu_matmul.violation import Violation

GEMM = text("gemm_one_core")
SIXTEEN = text("sixteen_cores")
C_FULL = '{init = 0 : i32, sym_name = "c_cons_lock_0"'
A_EMPTY = '{init = 2 : i32, sym_name = "a_cons_prod_lock_0"'


def broken(source: str) -> list[Violation]:
    found = read_lowered(source, "m.mlir")
    return [*refusals(found), *mistakes(found)]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_modules_obey_every_rule(name: str) -> None:
    assert not list(refusals(module(name)))
    assert not list(mistakes(module(name)))


def test_the_loop_obeys_every_rule() -> None:
    assert not broken(LOOP)


REFUSALS = {
    "no address": (("{address = 64 : i32, ", "{"), "memory", "a buffer without an address"),
    "over the end": (("address = 64 ", "address = 524256 "), "memory", "ends at byte 524,320"),
    "overlap": (
        ("  %empty =", '  %other = aie.buffer(%mem) {address = 124 : i32, sym_name = "other"} '
         ": memref<4xi32>\n  %empty ="),
        "memory", "on top of each other: buffer and other",
    ),
    "lock without a number": (("aie.lock(%mem, 0)", "aie.lock(%mem)"), "locks", "without a number"),
    "lock beyond the tile": (("aie.lock(%mem, 0)", "aie.lock(%mem, 64)"), "locks", "locks 0 to 63"),
    "lock number taken": (
        ("aie.lock(%mem, 1)", "aie.lock(%mem, 0)"), "locks", "is @empty's already",
    ),
    "lock that starts too high": (("{init = 1", "{init = 64"), "locks", "a lock holds 0 to 63"),
    "channel beyond the tile": (
        ("aie.dma_start(S2MM, 0", "aie.dma_start(S2MM, 6"), "channels", "channels 0 to 5",
    ),
    "a descriptor without a number": (
        ("bd_id = 0 : i32, next_bd_id = 0 : i32", "burst_length = 0 : i32"),
        "descriptors", "a descriptor without a number; run aie-assign-bd-ids",
    ),
    "descriptor number beyond the channel's": (
        ("bd_id = 0 : i32, next_bd_id = 0", "bd_id = 24 : i32, next_bd_id = 24"),
        "descriptors", "number 24 where this channel can use 0 to 23",
    ),
    "descriptor number used twice": (
        ("0, 16) {bd_id = 0 : i32, next_bd_id = 0 : i32}\n"
         "    aie.use_lock(%full, Release, 1)\n    aie.next_bd ^in\n",
         "0, 16) {bd_id = 0 : i32, next_bd_id = 0 : i32}\n"
         "    aie.use_lock(%full, Release, 1)\n    aie.next_bd ^again\n"
         "  ^again:\n    aie.use_lock(%empty, AcquireGreaterEqual, 1)\n"
         "    aie.dma_bd(%buffer : memref<16xi32>, 0, 16) {bd_id = 0 : i32, next_bd_id = 0 : i32}\n"
         "    aie.use_lock(%full, Release, 1)\n    aie.next_bd ^in\n"),
        "descriptors", "number 0 of memtile (0, 1) is that of m.mlir:",
    ),
    "descriptor number of another channel": (
        ("bd_id = 1 : i32, next_bd_id = 1", "bd_id = 0 : i32, next_bd_id = 0"),
        "descriptors", "MM2S 0, descriptor of @buffer: number 0 of memtile (0, 1) is that of m.ml",
    ),
    "next number not the next": (
        ("next_bd_id = 0", "next_bd_id = 2"),
        "descriptors", "its next_bd_id is 2, but the chain goes on with number 0",
    ),
    "no next number": (
        (", next_bd_id = 0 : i32", ""),
        "descriptors", "its next_bd_id is missing, but the chain goes on with number 0",
    ),
    "a next number at the end": (
        ("aie.next_bd ^in", "aie.next_bd ^end"),
        "descriptors", "its next_bd_id is 0, but the chain ends here",
    ),
    "memory out of reach": (
        ("aie.buffer(%mem)", "aie.buffer(%far)"), "reach", "@buffer is in core (0, 2)",
    ),
    "lock out of reach": (
        ("aie.lock(%mem, 1)", "aie.lock(%shim, 1)"), "reach", "lock @full is in shim (0, 0)",
    ),
    "beyond the buffer": (
        (f"{INTO}memref<16xi32>, 0, 16)", f"{INTO}memref<16xi32>, 4, 16)"),
        "pattern", "reaches element 19 of 16",
    ),
    "beyond the buffer by a stride": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 16, "
         "[<size = 4, stride = 5>, <size = 4, stride = 1>])"),
        "pattern", "reaches element 18 of 16",
    ),
    "nothing to move": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 0)"),
        "pattern", "a length of 0 elements",
    ),
    "too many loops": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 16, ["
         + "<size = 1, stride = 1>, " * 4 + "<size = 16, stride = 1>])"),
        "pattern", "5 dimensions where a descriptor there has 4",
    ),
    "a loop too long": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)",
         f"{OUT_OF}memref<16xi32>, 0, 16, [<size = 513, stride = 1>])"),
        "layout", "513 elements where a loop has 512",
    ),
    "padding by what receives": (
        (f"{INTO}memref<16xi32>, 0, 16)", f"{INTO}memref<16xi32>, 0, 16, "
         "[<size = 15, stride = 1>], [<const_pad_before = 1, const_pad_after = 0>])"),
        "padding", "only a memtile that sends can pad",
    ),
    "padding not counted": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 16, "
         "[<size = 16, stride = 1>], [<const_pad_before = 1, const_pad_after = 0>])"),
        "padding", "a length of 16 where the padded loops make 17",
    ),
    "padding of fewer loops": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 16, [<size = 4, "
         "stride = 4>, <size = 4, stride = 1>], [<const_pad_before = 0, const_pad_after = 0>])"),
        "padding", "1 paddings for 2 dimensions",
    ),
    "more padding than its field holds": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 80, "
         "[<size = 16, stride = 1>], [<const_pad_before = 64, const_pad_after = 0>])"),
        "padding", "padding of 64 words of loop 1 from the innermost; it holds 63 on each side",
    ),
    "more padding than the field of an outer loop holds": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 144, [<size = 4, "
         "stride = 4>, <size = 4, stride = 1>], [<const_pad_before = 0, const_pad_after = 32>, "
         "<const_pad_before = 0, const_pad_after = 0>])"),
        "padding", "padding of 32 steps of loop 2 from the innermost; it holds 31 on each side",
    ),
    "padding of a loop that has no field for it": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 24, ["
         + "<size = 2, stride = 1>, " * 3 + "<size = 2, stride = 1>], [<const_pad_before = 1, "
         "const_pad_after = 0>" + ", <const_pad_before = 0, const_pad_after = 0>" * 3 + "])"),
        "padding", "padding of loop 4 from the innermost; 3 can be padded",
    ),
    "more runs than a start has": (
        ("aie.dma_start(S2MM, 0, ^in, ^next)",
         "aie.dma_start(S2MM, 0, ^in, ^next, repeat_count = 256)"),
        "runs", "257 runs of its chain where a start has 256",
    ),
    "a flow from nowhere": (
        ("aie.flow(%mem, DMA : 0,", "aie.flow(%mem, DMA : 6,"), "wiring", "channels 0 to 5",
    ),
    "two flows to one channel": (
        ("  aie.shim_dma_allocation @in", "  aie.flow(%shim, DMA : 1, %mem, DMA : 0)\n"
         "  aie.shim_dma_allocation @in"),
        "wiring", "memtile (0, 1) S2MM 0 is fed by the flow at m.mlir:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_hardware_could_not_be_told_is_refused(case: str) -> None:
    change, rule, message = REFUSALS[case]
    source = changed(LOOP, change, ("  %shim =", "  %far = aie.tile(0, 2)\n  %shim ="))
    source = source.replace("  %far = aie.tile(0, 2)\n", "") if "%far)" not in source else source
    found = list(refusals(read_lowered(source, "m.mlir")))
    assert {violation.rule for violation in found} == {rule}
    assert any(message in str(violation) for violation in found)
    assert all(re.match(r"m\.mlir:\d+: ", violation.place) for violation in found)
    with pytest.raises(DesignError, match=re.escape(str(found[0]))):
        machine(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((": memref<16xi32>, 0, 16)", ": memref<64xi8>, 2, 60)"), "an offset of 2 B"),
        ((": memref<16xi32>, 0, 16)", ": memref<64xi8>, 0, 63)"), "a length of 63 B"),
        ((": memref<16xi32>, 0, 16)", ": memref<64xi8>, 0, 64, [<size = 8, stride = 9>, "
          "<size = 8, stride = 1>])"), "<size = 8, stride = 9>: a stride of 9 B"),
        ((": memref<16xi32>, 0, 16)", ": memref<64xi8>, 0, 64, [<size = 32, stride = 2>])"),
         "elements of 1 B that are 2 apart"),
    ],
)  # fmt: skip
def test_what_is_no_whole_word_is_refused(change: tuple[str, str], message: str) -> None:
    small = changed(LOOP, change).replace("memref<16xi32>, 0, 16", "memref<64xi8>, 0, 64")
    found = list(refusals(read_lowered(small.replace("memref<16xi32>", "memref<64xi8>"))))
    assert [violation.rule for violation in found] == ["granularity"]
    assert message in found[0].found


def test_a_buffer_on_the_stack_is_refused() -> None:
    source = changed(GEMM, ("address = 1088 : i32", "address = 1000 : i32"))
    assert any("(stack) and c_buff_0" in violation.found for violation in broken(source))


def test_elements_start_where_a_core_can_load_them() -> None:
    (found,) = broken(changed(GEMM, ("address = 4160", "address = 4162")))
    line = line_of(GEMM, "%_anonymous0 = aie.buffer")
    assert str(found).startswith(
        f"m.mlir:{line}: @_anonymous0 in core (0, 2): its elements of 4 B start at byte 4,162"
    )


def test_a_memtile_reaches_its_neighbour_through_some_channels_only() -> None:
    beside = changed(
        LOOP.replace("npu1_1col", "npu1_2col"),
        ("  %mem =", "  %beside = aie.tile(1, 1)\n  %mem ="),
        ("aie.buffer(%mem)", "aie.buffer(%beside)"),
    )
    assert not broken(beside)
    far = beside.replace("DMA : 0, %mem, DMA : 0", "DMA : 0, %mem, DMA : 4")
    far = changed(far, ("dma_start(S2MM, 0", "dma_start(S2MM, 4"))
    assert [violation.rule for violation in broken(far)] == ["reach"]


MISTAKES = {
    "an empty side that starts one too high": (
        [(A_EMPTY, A_EMPTY.replace("2", "3", 1))],
        "locks", A_EMPTY[13:], "3 in all, where core (0, 2) S2MM 0 goes round 2",
    ),
    "an empty side that starts one too low": (
        [(A_EMPTY, A_EMPTY.replace("2", "1", 1))],
        "locks", A_EMPTY[13:], "1 in all, where core (0, 2) S2MM 0 goes round 2",
    ),
    "a full side that does not start at none": (
        [(C_FULL, C_FULL.replace("0", "1", 1))],
        "locks", 'sym_name = "c_prod_lock_0"', "3 in all, where core (0, 2) MM2S 0 goes round 2",
    ),
    "a descriptor that gives more than it takes": (
        [("(%b_cons_cons_lock_0, Release, 1)", "(%b_cons_cons_lock_0, Release, 2)")],
        "locks", "aie.dma_bd(%b_cons_buff_0", "acquires 1 of @b_cons_prod_lock_0 and releases 2 of",
    ),
    "a core that releases less than it holds": (
        [("      aie.use_lock(%b_cons_prod_lock_0, Release, 1)\n      %41", "      %41")],
        "balance", "%27 = arith.cmpi slt", "entered holding 1 of @b_cons_prod_lock_0",
    ),
    "a core that releases what it does not hold": (
        [("^bb15\n      aie.use_lock(%a_cons_cons_lock_0, AcquireGreaterEqual, 1)\n", "^bb15\n")],
        "balance", ("aie.use_lock(%a_cons_prod_lock_0, Release, 1)", 1),
        "releases @a_cons_prod_lock_0 without holding anything",
    ),
    "a core that gives back by the wrong lock": (
        [("aie.use_lock(%c_cons_lock_0, Release, 1)", "aie.use_lock(%c_prod_lock_0, Release, 1)")],
        "locks", "aie.use_lock(%c_prod_lock_0, Release, 1)",
        "it releases @c_prod_lock_0, which no channel acquires; @c_cons_lock_0 may be meant",
    ),
    "a channel that nothing is sent to": (
        [("    aie.flow(%shim_noc_tile_0_0, DMA : 1, %tile_0_2, DMA : 1)\n", ""),
         ("    aie.shim_dma_allocation @b_shim_alloc(%shim_noc_tile_0_0, MM2S, 1)\n", "")],
        "wiring", "aie.dma_start(S2MM, 1", "no flow leads to it",
    ),
    "a name of a channel without a flow": (
        [("    aie.flow(%shim_noc_tile_0_0, DMA : 1, %tile_0_2, DMA : 1)\n",
          "    aie.flow(%shim_noc_tile_0_0, DMA : 0, %tile_0_2, DMA : 1)\n")],
        "wiring", None, "@b_shim_alloc: shim (0, 0) MM2S 1 has no flow",
    ),
    "a flow to a channel that is never started": (
        [("    aie.shim_dma_allocation @a_shim_alloc(%shim_noc_tile_0_0, MM2S, 0)\n", "")],
        "wiring", "aie.flow(%shim_noc_tile_0_0, DMA : 0", "shim (0, 0) MM2S 0 is never started",
    ),
    "a part of a buffer that never leaves": (
        [("%c_buff_1 : memref<256xi32>, 0, 256", "%c_buff_1 : memref<256xi32>, 0, 192")],
        "pattern", "aie.dma_bd(%c_buff_1", "read 192 of its 256 words, the word 192 never",
    ),
    "a stride that is one too long": (
        [("%c_buff_0 : memref<256xi32>, 0, 256)", "%c_buff_0 : memref<256xi32>, 0, 240, "
          "[<size = 15, stride = 17>, <size = 16, stride = 1>])")],
        "pattern", "aie.dma_bd(%c_buff_0", "read 240 of its 256 words",
    ),
    "words that arrive on top of each other": (
        [("%a_cons_buff_0 : memref<256xi8>, 0, 256)", "%a_cons_buff_0 : memref<256xi8>, 0, 256, "
          "[<size = 2, stride = 124>, <size = 128, stride = 1>])")],
        "pattern", "aie.dma_bd(%a_cons_buff_0", "it writes word 31 of @a_cons_buff_0 2 times",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_what_would_go_wrong_is_found_where_it_stands(case: str) -> None:
    changes, rule, where, message = MISTAKES[case]
    source = changed(GEMM, *changes)
    found = broken(source)
    assert rule in {violation.rule for violation in found}
    place = None
    if where is not None:
        part, nth = where if isinstance(where, tuple) else (where, 0)
        place = f"m.mlir:{line_of(source, part, nth)}: "
    assert any(
        message in str(violation) and (place is None or violation.place.startswith(place))
        for violation in found
    ), "\n".join(map(str, found))


@pytest.mark.parametrize("end", ["^in", "^end"])
@pytest.mark.parametrize(
    ("missing", "found"),
    [
        ("    aie.use_lock(%full, Release, 1)\n", "acquires 1 of @empty and releases nothing"),
        ("    aie.use_lock(%empty, AcquireGreaterEqual, 1)\n",
         "acquires nothing and releases 1 of @full"),
    ],
)  # fmt: skip
def test_a_descriptor_uses_two_locks_or_none(missing: str, found: str, end: str) -> None:
    """Also in a chain that ends, which hands nothing over again and again."""
    source = changed(LOOP, (missing, ""), ("aie.next_bd ^in", f"aie.next_bd {end}"))
    if end == "^end":
        source = changed(source, (", next_bd_id = 0 : i32", ""))
    place = f"m.mlir:{line_of(source, 'aie.dma_bd(%buffer')}: memtile (0, 1) S2MM 0"
    expected = f"{place}: it {found}; a descriptor uses a lock before and one after, or none"
    assert expected in map(str, broken(source))


def test_a_missing_release_of_a_descriptor_is_told_apart() -> None:
    source = changed(GEMM, ("      aie.use_lock(%b_cons_cons_lock_0, Release, 1)\n", ""))
    line = line_of(source, "aie.dma_bd(%b_cons_buff_0")
    assert str(broken(source)[0]).startswith(
        f"m.mlir:{line}: core (0, 2) S2MM 1: it acquires 1 of @b_cons_prod_lock_0 and releases "
        "nothing; "
    )


def test_an_exact_acquire_of_one_of_two_buffers_is_impatient() -> None:
    """It is right only while the other side is slow; of a single buffer it is always right."""
    full = "aie.use_lock(%{}_cons_lock_0, {}, 1)"
    for name, who in (("c", "core (0, 2) MM2S 0"), ("a_cons", "core (0, 2)")):
        change = full.format(name, "AcquireGreaterEqual"), full.format(name, "Acquire")
        source = changed(GEMM, change)
        (found,) = broken(source)
        assert str(found).startswith(
            f"m.mlir:{line_of(source, change[1])}: {who}: it waits for exactly 1 of "
            f"@{name}_cons_lock_0, which can come to stand at 2; wait for at least so many"
        )
    assert not broken(LOOP.replace("AcquireGreaterEqual", "Acquire"))


def test_a_part_of_a_buffer_may_be_moved_if_both_sides_move_it() -> None:
    part = LOOP.replace(": memref<16xi32>, 0, 16)", ": memref<16xi32>, 4, 8)")
    assert not broken(part)
    whole_in, whole_out = (
        changed(part, (f"{side}memref<16xi32>, 4, 8", f"{side}memref<16xi32>, 0, 16"))
        for side in (INTO, OUT_OF)
    )
    (never_out,), (never_in,) = broken(whole_in), broken(whole_out)
    assert never_out.found == "its descriptors read 8 of its 16 words, the word 0 never"
    assert never_in.found == "its descriptors write 8 of its 16 words, the word 0 never"


@pytest.mark.parametrize("size", [7, 9])
def test_loops_make_what_is_moved(size: int) -> None:
    source = changed(
        text("transform"), ("<size = 8, stride = 128>", f"<size = {size}, stride = 128>")
    )
    found = [str(violation) for violation in broken(source)]
    line = line_of(source, f"<size = {size}, stride = 128>")
    assert found == [
        f"m.mlir:{line}: memtile (0, 1) MM2S 0, descriptor of @in_l3l2_cons_buff_0: a length of "
        f"1,024 where the loops make {128 * size:,} elements; make them agree"
    ]


def test_the_race_is_found_without_running_it() -> None:
    found = list(mistakes(module("gemm_one_core_race")))
    line = line_of(text("gemm_one_core_race"), "%9 = arith.cmpi slt, %8, %7")
    assert [violation.rule for violation in found] == ["balance"]
    assert str(found[0]).startswith(
        f"gemm_one_core_race.mlir:{line}: core (0, 2): this block is entered holding 1 of "
        "@a_cons_prod_lock_0 and @a_cons_cons_lock_0, and holding 0"
    )


def test_a_broadcast_to_three_of_four_cores_names_the_fourth() -> None:
    flow = "    aie.flow(%mem_tile_0_1, DMA : 0, %tile_3_2, DMA : 0)\n"
    found = broken(changed(SIXTEEN, (flow, "")))
    assert len(found) == 1
    assert "core (3, 2) S2MM 0: no flow leads to it" in str(found[0])


def test_locks_that_hand_over_the_same_memory_belong_together() -> None:
    groups = {frozenset(lock.name for lock in group) for group in lock_groups(module("transform"))}
    assert groups == {
        frozenset({f"{name}_prod_lock_0", f"{name}_cons_lock_0"})
        for name in ("in_l3l2_cons", "in_l2l1_cons", "out")
    }


def test_a_lock_that_guards_nothing_is_nobodys_business() -> None:
    """Locks between cores, say: how often they are taken is not counted."""
    source = after_line(GEMM, "%rtp =", "    %own = aie.lock(%tile_0_2, 9) {init = 1 : i32}\n")
    source = after_line(source, "^bb2:  //", "      aie.use_lock(%own, AcquireGreaterEqual, 1)\n")
    assert not list(unbalanced_cores(read_lowered(source)))
