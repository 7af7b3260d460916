"""Lowered modules are read as they stand, print back the same, and what is unknown is refused."""

from __future__ import annotations

import doctest

import lowered_modules
import numpy as np
import pytest
from comparing import assert_equal_bits
from golden import changed
from lowered_modules import INTO, LOOP, OUT_OF, module, text
from xdsl.ir import Operation

from npu_matmul.emulator import patterns
from npu_matmul.lowered import core, reading, scalars, schedules
from npu_matmul.lowered.module import PADDING, Port
from npu_matmul.lowered.reading import is_lowered, read_lowered
from npu_matmul.mlir.elaborate import overlay_of
from npu_matmul.mlir.reader import DesignError, read_design
from npu_matmul.overlay import Channel, Tile

ALL = (*lowered_modules.GOLDEN, "gemm_one_core_race")


@pytest.mark.parametrize("found", [patterns, core, reading, scalars, schedules])
def test_the_docstring_examples_hold(found: object) -> None:
    assert doctest.testmod(found).failed == 0  # type: ignore[arg-type]


def operations(device: Operation) -> list[tuple[object, ...]]:
    return [
        (op.name, op.properties, op.attributes, [v.type for v in op.operands], len(op.successors))
        for op in device.walk()
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_lowered_module_prints_back_with_the_same_meaning(name: str) -> None:
    device = read_design(text(name))
    for op in device.walk():  # names are cosmetic, and xDSL's printer can make two of them equal
        for value in (*op.results, *(arg for r in op.regions for b in r.blocks for arg in b.args)):
            value.name_hint = None
    again = read_design(str(device))
    assert operations(again) == operations(device)
    assert str(read_design(str(again))) == str(again)


def test_padding_and_repeats_print_back() -> None:
    padded = changed(
        LOOP,
        (f"{OUT_OF}memref<16xi32>, 0, 16", f"{OUT_OF}memref<16xi32>, 0, 20, "
         "[<size = 4, stride = 4>, <size = 4, stride = 1>], [<const_pad_before = 0, "
         "const_pad_after = 0>, <const_pad_before = 0, const_pad_after = 1>], pad_value = 7"),
        ("^in, ^next)", "^in, ^next, repeat_count = 3)"),
        (": memref<16xi32>\n", ": memref<16xi32> = dense<5>\n"),
        ("aie.next_bd ^in\n", "aie.next_bd ^next\n"),
    )  # fmt: skip
    device = read_design(padded)
    assert operations(read_design(str(device))) == operations(device)
    printed = str(device)
    for part in ("pad_value = 7", "const_pad_after = 1", "repeat_count = 3", "= dense<5>"):
        assert part in printed


def test_what_the_module_holds_is_read_as_written() -> None:
    found = module("sixteen_cores")
    assert (found.device, found.columns, len(found.cores)) == ("npu1", 4, 16)
    assert (len(found.buffers), len(found.locks), len(found.flows)) == (132, 168, 60)
    assert found.overlay.channels["C_L2L3_2_shim_alloc"] == Channel(2, "S2MM", 0)
    assert found.overlay.parameters["rtp_1_0"].address == 2048
    join = found.programs[Port(Tile(0, 1), "MM2S", 2)]
    assert [d.offset for d in join.descriptors] == [0, 8192, 16384, 24576]
    assert [d.acquire.lock.number for d in join.cycle() if d.acquire] == [5, 7, 9, 11]
    assert join.loop == 0
    c = found.buffers["C_L1L2_0_0_buff_0"]
    assert (c.tile, c.address, c.bytes, c.dtype) == (Tile(0, 2), 2112, 32768, np.int32)


def test_which_modules_are_lowered() -> None:
    import golden

    for name in ALL:
        assert is_lowered(read_design(text(name)))
        assert not is_lowered(read_design(golden.design(name)))


def test_a_lowered_module_is_no_object_fifo_design() -> None:
    with pytest.raises(DesignError, match=r"m\.mlir:5: aie\.lock is of a lowered module"):
        overlay_of(read_design(text("gemm_one_core"), "m.mlir"))


def test_a_pattern_walks_its_loops_and_ends_with_its_length() -> None:
    dims = "[<size = 2, stride = 1>, <size = 4, stride = 4>, <size = 1, stride = 1>]"
    source = changed(
        LOOP, (f"{OUT_OF}memref<16xi32>, 0, 16", f"{OUT_OF}memref<16xi32>, 1, 7, {dims}")
    )
    descriptor = read_lowered(source).programs[Port(Tile(0, 1), "MM2S", 0)].descriptors[0]
    assert descriptor.elements.tolist() == [1, 5, 9, 13, 2, 6, 10]
    assert_equal_bits(descriptor.words, descriptor.elements)


def test_a_length_beyond_the_loops_goes_on_with_the_outermost() -> None:
    """Its count is nowhere in the descriptor."""
    dims = "[<size = 2, stride = 5>, <size = 3, stride = 1>]"
    longer = f"{OUT_OF}memref<16xi32>, 0, 10, {dims}"
    source = changed(LOOP, (f"{OUT_OF}memref<16xi32>, 0, 16", longer))
    descriptor = read_lowered(source).programs[Port(Tile(0, 1), "MM2S", 0)].descriptors[0]
    assert descriptor.elements.tolist() == [0, 1, 2, 5, 6, 7, 10, 11, 12, 15]


def test_words_of_small_elements_are_counted_in_fours() -> None:
    source = changed(
        LOOP.replace("memref<16xi32>", "memref<64xi8>"),
        (
            "memref<64xi8>, 0, 16",
            "memref<64xi8>, 8, 16, [<size = 2, stride = 32>, <size = 8, stride = 1>]",
        ),
    )
    descriptor = read_lowered(source).programs[Port(Tile(0, 1), "S2MM", 0)].descriptors[0]
    assert descriptor.words.tolist() == [2, 3, 10, 11]


def test_padding_stands_around_each_loop() -> None:
    source = changed(
        LOOP,
        (f"{OUT_OF}memref<16xi32>, 0, 16", f"{OUT_OF}memref<16xi32>, 4, 12, "
         "[<size = 2, stride = 4>, <size = 2, stride = 1>], [<const_pad_before = 1, "
         "const_pad_after = 0>, <const_pad_before = 0, const_pad_after = 2>]"),
    )  # fmt: skip
    descriptor = read_lowered(source).programs[Port(Tile(0, 1), "MM2S", 0)].descriptors[0]
    P = PADDING
    assert descriptor.elements.tolist() == [P, P, P, P, 4, 5, P, P, 8, 9, P, P]


REFUSED = {
    "an operation that is not known": (
        ("  %empty = aie.lock", "  aie.cascade_flow(%shim, %mem)\n  %empty = aie.lock"),
        "cascade_flow",
    ),
    "a routed module": (
        ("  %empty = aie.lock", "  aie.switchbox(%mem) {}\n  %empty = aie.lock"),
        "switchbox",
    ),
    "an attribute that is not known": (
        ("%mem, DMA : 0)\n", "%mem, DMA : 0) {x = 1}\n"),
        "attribute 'x' is not supported",
    ),
    "a flow of another port": (
        ("%mem, DMA : 0)\n  aie.flow", "%mem, Core : 0)\n  aie.flow"),
        "flows of port Core are not supported",
    ),
    "an object FIFO among locks": (
        ("  %empty = aie.lock", "  aie.objectfifo @f(%shim, {%mem}, 2 : i32) : "
         "!aie.objectfifo<memref<4xi32>>\n  %empty = aie.lock"),
        "aie.objectfifo is not supported in a lowered module",
    ),
    "a channel started twice": (
        ("aie.dma_start(MM2S, 0", "aie.dma_start(S2MM, 0"),
        "memtile (0, 1) S2MM 0 is started twice",
    ),
    "a program on the wrong tile": (
        ("aie.memtile_dma(%mem)", "aie.mem(%mem)"),
        "aie.mem stands on memtile (0, 1)",
    ),
    "two acquires in a descriptor": (
        ("    aie.dma_bd", "    aie.use_lock(%full, AcquireGreaterEqual, 1)\n    aie.dma_bd"),
        "can acquire one lock before it moves anything",
    ),
    "a release before the transfer": (
        ("aie.use_lock(%empty, AcquireGreaterEqual, 1)\n", "aie.use_lock(%empty, Release, 1)\n"),
        "can acquire one lock before it moves anything",
    ),
    "a pad value of a descriptor": (
        (f"{OUT_OF}memref<16xi32>, 0, 16)", f"{OUT_OF}memref<16xi32>, 0, 17, "
         "[<size = 16, stride = 1>], [<const_pad_before = 0, const_pad_after = 1>], "
         "pad_value = 3)"),
        "a pad_value of a descriptor reaches no register, and zeros come instead",
    ),
    "a chain without a descriptor": (
        (
            "    aie.use_lock(%empty, AcquireGreaterEqual, 1)\n"
            "    aie.dma_bd(%buffer : memref<16xi32>, 0, 16) "
            "{bd_id = 0 : i32, next_bd_id = 0 : i32}\n"
            "    aie.use_lock(%full, Release, 1)\n",
            "",
        ),
        "a block of a chain without an aie.dma_bd",
    ),
    "a lock used by nothing": (
        ("(%empty, AcquireGreaterEqual, 1)", "(%empty, AcquireGreaterEqual, 0)"),
        "@empty is used with 0; at least 1 is needed",
    ),
    "an allocation beyond the shim": (
        ("@in(%shim, MM2S, 0)", "@in(%shim, MM2S, 2)"),
        "must be one of the 2 of a shim",
    ),
    "packets that carry data": (
        ("  %empty = aie.lock", "  aie.packet_flow(3) {\n aie.packet_source<%mem, DMA : 1>\n"
         "aie.packet_dest<%shim, DMA : 1>\n }\n  %empty = aie.lock"),
        "packets of port DMA are not supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_is_refused_with_its_place(case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(DesignError) as caught:
        read_lowered(changed(LOOP, change), "loop.mlir")
    assert message in str(caught.value)
    assert str(caught.value).startswith("loop.mlir")
    if "unregistered" not in str(caught.value):
        assert ":" in str(caught.value)


def test_the_loop_itself_is_good() -> None:
    assert INTO in LOOP
    assert OUT_OF in LOOP
    assert len(read_lowered(LOOP).programs) == 2
