"""A design's wiring is read as it stands, and every design that cannot be one is refused."""

from __future__ import annotations

import golden
import ml_dtypes
import numpy as np
import pytest
from golden import changed, overlay, sequence

from npu_matmul.mlir.reader import DesignError, read_design
from npu_matmul.overlay import Channel, Link, Tile
from npu_matmul.sequence import Argument, Sequence, Transfer, Wait, WriteParameter, linear
from npu_matmul.target import NPU1

CORE_GRID = [(column, row) for column in range(4) for row in range(4)]

# A join and a distribution on npu1_2col: the shim sends pieces to two cores and gets theirs back.
PIECES = """\
module {
  aie.device(npu1_2col) {
    %shim = aie.tile(0, 0)
    %mem = aie.tile(0, 1)
    %one = aie.tile(0, 2)
    %two = aie.tile(0, 3)
    aie.objectfifo @in(%shim, {%mem}, 2 : i32) : !aie.objectfifo<memref<32xi32>>
    aie.objectfifo @in_1(%mem, {%one}, 2 : i32) : !aie.objectfifo<memref<8xi32>>
    aie.objectfifo @in_2(%mem, {%two}, 2 : i32) : !aie.objectfifo<memref<24xi32>>
    aie.objectfifo.link [@in] -> [@in_1, @in_2]([] [0, 8])
    aie.objectfifo @out_1(%one, {%mem}, 2 : i32) : !aie.objectfifo<memref<8xi32>>
    aie.objectfifo @out_2(%two, {%mem}, 2 : i32) : !aie.objectfifo<memref<24xi32>>
    aie.objectfifo @out(%mem, {%shim}, 2 : i32) : !aie.objectfifo<memref<32xi32>>
    aie.objectfifo.link [@out_1, @out_2] -> [@out]([0, 8] [])
    %rtp = aie.buffer(%one) {sym_name = "rtp", address = 1024 : i32} : memref<16xi32>
  }
}
"""


def refusal(text: str, line: int) -> str:
    with pytest.raises(DesignError) as caught:
        device = read_design(text, "pieces.mlir")
        golden.overlay_of(device)
        golden.sequence_of(device)
    message = str(caught.value)
    assert f"pieces.mlir:{line}:" in message
    return message


def test_channels_are_numbered_in_order_of_appearance() -> None:
    text = golden.design("gemm_one_core")
    assert overlay(text).channels == {
        "a": Channel(0, "MM2S", 0),
        "b": Channel(0, "MM2S", 1),
        "c": Channel(0, "S2MM", 0),
    }
    a, b = (
        line for line in text.splitlines() if "objectfifo @a" in line or "objectfifo @b" in line
    )
    swapped = overlay(changed(text, (f"{a}\n{b}", f"{b}\n{a}")))
    assert swapped.channels["b"] == Channel(0, "MM2S", 0)
    assert swapped.channels["a"] == Channel(0, "MM2S", 1)


def test_every_column_numbers_its_own_channels() -> None:
    channels = overlay(golden.design("two_columns")).channels
    assert channels == {
        "a_l3l2": Channel(0, "MM2S", 0),
        "b0_l3l2": Channel(0, "MM2S", 1),
        "b1_l3l2": Channel(1, "MM2S", 0),
        "c0_l2l3": Channel(0, "S2MM", 0),
        "c1_l2l3": Channel(1, "S2MM", 0),
    }


def test_whole_array_is_wired_as_written() -> None:
    read = overlay(golden.design("sixteen_cores"))
    assert (read.device, read.target, read.columns) == ("npu1", NPU1, 4)
    assert read.functions == {"zero": "mm.o", "matmul": "mm.o"}
    assert [core.tile for core in read.cores] == [Tile(c, 2 + r) for c, r in CORE_GRID]
    assert [p.tile for p in read.parameters.values()] == [Tile(c, 2 + r) for c, r in CORE_GRID]
    assert {(p.address, p.elements, p.dtype) for p in read.parameters.values()} == {
        (2048, 16, np.dtype(np.int32))
    }
    assert sorted(read.values.values()) == sorted(read.parameters)
    for i in range(4):
        assert read.channels[f"A_L3L2_{i}"] == Channel(i, "MM2S", 0)
        assert read.channels[f"B_L3L2_{i}"] == Channel(i, "MM2S", 1)
        assert read.channels[f"C_L2L3_{i}"] == Channel(i, "S2MM", 0)
        assert read.fifos[f"A_L2L1_{i}"].consumers == tuple(Tile(c, 2 + i) for c in range(4))
        assert read.fifos[f"B_L2L1_{i}"].consumers == tuple(Tile(i, 2 + r) for r in range(4))
    assert len(read.channels) == 12
    joins = [link for link in read.links if len(link.sources) > 1]
    assert [(link.sources, link.destinations, link.offsets) for link in joins] == [
        (tuple(f"C_L1L2_{c}_{r}" for r in range(4)), (f"C_L2L3_{c}",), (0, 8192, 16384, 24576))
        for c in range(4)
    ]
    forwards = [link for link in read.links if len(link.sources) == 1]
    assert {(link.sources[0][:6], link.destinations[0][:6], link.offsets) for link in forwards} == {
        ("A_L3L2", "A_L2L1", (0,)),
        ("B_L3L2", "B_L2L1", (0,)),
    }


def test_fifo_keeps_its_depths_types_and_layouts() -> None:
    fifos = overlay(golden.design("sixteen_cores")).fifos
    assert (fifos["A_L2L1_0"].depths, fifos["A_L2L1_0"].depths_forced) == ((2,) * 5, False)
    assert (fifos["C_L1L2_0_0"].depths, fifos["C_L1L2_0_0"].depths_forced) == ((1, 2), True)
    assert overlay(golden.design("two_columns")).fifos["a_l3l2"].dtype == ml_dtypes.bfloat16
    moved = overlay(golden.design("transform")).fifos["in_l2l1"]
    assert (moved.elements, moved.element_bytes) == (32 * 32, 1024)
    assert moved.to_stream == ((8, 128), (4, 8), (4, 32), (8, 1))
    assert moved.from_stream == ((),)
    assert (moved.producer, moved.consumers) == (Tile(0, 1), (Tile(0, 2),))


def test_join_and_distribution_keep_their_offsets() -> None:
    distribution, join = overlay(PIECES).links
    assert distribution == Link(("in",), ("in_1", "in_2"), (0, 8), "design.mlir:10")
    assert join == Link(("out_1", "out_2"), ("out",), (0, 8), "design.mlir:14")


def test_pieces_may_come_in_any_order() -> None:
    text = changed(PIECES, ("([] [0, 8])", "([] [24, 0])"), ("([0, 8] [])", "([24, 0] [])"))
    assert [link.offsets for link in overlay(text).links] == [(24, 0), (24, 0)]


def test_partition_of_fewer_columns_is_read() -> None:
    assert overlay(PIECES).columns == 2
    assert overlay(changed(PIECES, ("npu1_2col", "npu1"))).columns == 4


def test_runtime_sequence_is_read_step_by_step() -> None:
    assert sequence(golden.design("gemm_one_core")) == Sequence(
        "gemm",
        (
            Argument("ab", 3072, np.dtype(np.int8)),
            Argument("c", 1024, np.dtype(np.int32)),
        ),
        (
            WriteParameter("rtp", 0, 3),
            Transfer("c", 1, descriptor=0, token=True, **linear(0, 1024)),
            Transfer("a", 0, descriptor=1, **linear(0, 1536, runs=2)),
            Transfer("b", 0, descriptor=2, **linear(1536, 768, runs=2)),
            Transfer("b", 0, descriptor=3, **linear(2304, 768, runs=2)),
            Wait("c"),
        ),
    )


def test_values_that_are_constants_are_what_they_hold() -> None:
    """As releases of mlir-aie from 1.4 on write them."""
    written = golden.design("gemm_one_core")
    later = changed(
        written,
        ("aiex.npu.rtp_write(@rtp, 0, 3)",
         "%three = arith.constant 3 : i32\n      aiex.npu.rtp_write(@rtp, 0, %three) : i32\n"
         "      %size = arith.constant 1024 : i64\n      %none = arith.constant 0 : i64"),
        ("[0,0,0,0][1,1,1,1024]", "[0,%none,0,%none][1,1,1,%size]"),
    )  # fmt: skip
    read = sequence(later)
    assert read == sequence(written)
    lines = later.splitlines()
    names = ["rtp_write", *["dma_memcpy_nd"] * 4, "dma_wait"]
    for place, name in zip(read.places, names, strict=True):
        assert f"aiex.npu.{name}" in lines[int(place.rpartition(":")[2]) - 1]


def test_offset_of_a_transfer_counts_in_its_strides() -> None:
    text = changed(
        golden.design("transform"), ("%in[0,0,0,0][2,2,32,32]", "%in[1,1,2,4][1,1,32,32]")
    )
    step = sequence(text).steps[1]
    assert isinstance(step, Transfer)
    assert step.offset == 2048 + 32 + 2 * 64 + 4


def test_transfer_reports_only_when_it_is_told_to() -> None:
    text = golden.design("gemm_one_core")
    told = sequence(changed(text, ("issue_token = true", "issue_token = false"))).steps[1]
    assert isinstance(told, Transfer)
    assert not told.token


def test_smallest_and_highest_buffers_are_read() -> None:
    one = changed(PIECES, ("1024 : i32} : memref<16xi32>", "65532 : i32} : memref<1xi32>"))
    assert overlay(one).parameters["rtp"].address == 65532
    scalar = changed(PIECES, ("1024 : i32} : memref<16xi32>", "0 : i32} : memref<i32>"))
    assert overlay(scalar).parameters["rtp"].elements == 1


def test_nameless_sequence_has_the_toolchains_name() -> None:
    steps = "aie.runtime_sequence(%0: memref<4x8xi8>) { }\n    %rtp"
    read = sequence(changed(PIECES, ("%rtp", steps)))
    assert read == Sequence("sequence", (Argument("arg0", 32, np.dtype(np.int8)),), ())


INPUT = "aie.objectfifo @{}(%shim, {{%two}}, 2 : i32) : !aie.objectfifo<memref<8xi32>>\n    "
OUTPUT = "aie.objectfifo @{}(%two, {{%shim}}, 2 : i32) : !aie.objectfifo<memref<8xi32>>\n    "
NOTHING = "aie.runtime_sequence() { }\n    "
DIMS = "dimensionsToStream"
FROM = "dimensionsFromStream"

# What is changed, what it becomes, the line to blame, what the message says.
REFUSED = {
    "unknown attribute of a tile": ("(0, 2)", "(0, 2) {foo}", 5, "attribute 'foo'"),
    "unknown attribute of a link": ("([] [0, 8])", "([] [0, 8]) {foo}", 10, "attribute 'foo'"),
    "unknown attribute of the device": ("  }\n}", "  } {foo}\n}", 2, "attribute 'foo'"),
    "unknown attribute of a buffer": ("{sym_name", "{foo, sym_name", 15, "attribute 'foo'"),
    "device of another family": ("npu1_2col", "npu3", 2, "Expected `npu1`"),
    "column outside": ("(0, 2)", "(2, 2)", 5, "(2, 2) is outside the device: 2 columns"),
    "row outside": ("(0, 2)", "(0, 6)", 5, "(0, 6) is outside the device: 2 columns, 6 rows"),
    "tile named twice": ("(0, 3)", "(0, 2)", 6, "core (0, 2) is declared already"),
    "element type without a size": ("memref<8xi32>", "memref<8xi3>", 8, "memref<8xi3>"),
    "element type too wide": ("memref<8xi32>", "memref<8xi64>", 8, "memref<8xi64>"),
    "element of unknown size": ("memref<8xi32>", "memref<?xi32>", 8, "known size"),
    "element of nothing": ("memref<8xi32>", "memref<0xi32>", 8, "known size"),
    "element of part of a word": ("memref<8xi32>", "memref<7xi8>", 8, "@in_1: an element of 7 B"),
    "depth of nothing": ("{%one}, 2", "{%one}, 0", 8, "@in_1: a depth must be at least 1"),
    "FIFO without consumers": ("{%one}", "{}", 8, "@in_1: it has no consumer"),
    "core to core": ("(%one, {%mem}", "(%one, {%two}", 11, "@out_1: FIFOs from core to core"),
    "shim to shim": ("(%mem, {%shim}", "(%shim, {%shim}", 13, "@out: FIFOs from shim to shim"),
    "shim beside others": ("{%shim}", "{%shim, %one}", 13, "@out: a FIFO to a shim"),
    "layout at a shim's end": (
        "{%shim}",
        f"{{%shim {FROM} [<size = 32, stride = 1>]}}",
        13,
        "@out: layout transformations are not supported at a shim",
    ),
    "layout at a shim's start": (
        "(%shim",
        f"(%shim {DIMS} [<size = 32, stride = 1>]",
        7,
        "@in: layout transformations are not supported at a shim",
    ),
    "layout of too few": (
        "(%mem, {%one}",
        f"(%mem {DIMS} [<size = 7, stride = 1>], {{%one}}",
        8,
        "@in_1: its layout transformation moves 7 elements",
    ),
    "layout past the end": (
        "(%mem, {%one}",
        f"(%mem {DIMS} [<size = 4, stride = 3>, <size = 2, stride = 1>], {{%one}}",
        8,
        "moves 8 elements up to index 10",
    ),
    "layout that leaves some out": (
        "{%one}",
        f"{{%one {FROM} [<size = 2, stride = 0>, <size = 4, stride = 1>]}}",
        8,
        "moves 8 elements up to index 3; it must move each of the 8 once",
    ),
    "link of a FIFO that is not": ("[@in]", "[@no]", 10, "there is no object FIFO @no"),
    "link of a FIFO that comes later": ("[@in]", "[@out]", 10, "there is no object FIFO @out"),
    "link of nothing": ("[@in]", "[]", 10, "FIFOs on both sides"),
    "link to nothing": ("[@in_1, @in_2]([] [0, 8])", "[]([] [])", 10, "FIFOs on both sides"),
    "link of two links": ("[@out_1,", "[@in_1,", 14, "@in_1 can be linked only once"),
    "link of a FIFO twice": ("[@out_1, @out_2]", "[@out_1, @out_1]", 14, "only once"),
    "join and distribution at once": (
        "aie.objectfifo.link [@out_1, @out_2] -> [@out]",
        "aie.objectfifo @more(%mem, {%two}, 2 : i32) : !aie.objectfifo<memref<8xi32>> "
        "aie.objectfifo.link [@out_1, @out_2] -> [@out, @more]",
        14,
        "joins and distributes at once",
    ),
    "link that meets in no memtile": ("(%one, {%mem}", "(%one, {%shim}", 14, "meet in one memtile"),
    "element types that differ": ("memref<8xi32>", "memref<8xf32>", 10, "different element types"),
    "offsets on the wrong side": (
        "([] [0, 8])",
        "([0, 8] [])",
        10,
        "only the side with the pieces",
    ),
    "offsets on both sides": ("([0, 8] [])", "([0, 8] [0])", 14, "only the side with the pieces"),
    "too few offsets": ("([] [0, 8])", "([] [0])", 10, "1 offsets for 2 pieces"),
    "offsets left out": ("([0, 8] [])", "([] [])", 14, "1 offsets for 2 pieces"),
    "pieces that overlap": (
        "([] [0, 8])",
        "([] [0, 4])",
        10,
        "do not cover the 32 elements of @in",
    ),
    "pieces on top of each other": ("([] [0, 8])", "([] [8, 8])", 10, "do not cover"),
    "join with a gap": ("([0, 8] [])", "([0, 16] [])", 14, "do not cover the 32 elements of @out"),
    "pieces too small": ("<24xi32>", "<16xi32>", 10, "do not cover the 32 elements of @in"),
    "layout of a join": (
        "(%mem, {%shim}",
        f"(%mem {DIMS} [<size = 32, stride = 1>], {{%shim}}",
        14,
        "a layout transformation of joined or distributed pieces",
    ),
    "layout of a distribution": (
        "{%mem}",
        f"{{%mem {FROM} [<size = 32, stride = 1>]}}",
        10,
        "a layout transformation of joined or distributed pieces",
    ),
    "third channel into the array": (
        "%rtp",
        f"{INPUT.format('x')}{INPUT.format('y')}%rtp",
        16,
        "@y needs another MM2S channel of shim (0, 0), which has 2",
    ),
    "third channel out of the array": (
        "%rtp",
        f"{OUTPUT.format('x')}{OUTPUT.format('y')}%rtp",
        16,
        "@y needs another S2MM channel of shim (0, 0), which has 2",
    ),
    "second core of a tile": (
        "%rtp",
        "aie.core(%one) {aie.end}\n aie.core(%one) {aie.end}\n %rtp",
        16,
        "core (0, 2) has a core already",
    ),
    "core on a memtile": (
        "%rtp",
        "aie.core(%mem) {aie.end}\n %rtp",
        15,
        "memtile (0, 1) cannot hold",
    ),
    "buffer on a shim": ("buffer(%one)", "buffer(%shim)", 15, "@rtp at 1024 of shim (0, 0)"),
    "buffer between words": ("1024 : i32", "1026 : i32", 15, "@rtp at 1026 of core (0, 2)"),
    "buffer past the memory": ("1024 : i32", "65504 : i32", 15, "@rtp at 65504"),
    "buffer before the memory": ("1024 : i32", "-64 : i32", 15, "@rtp at -64"),
    "unknown operation": ("%rtp", "aiex.npu.dma_wait {symbol = @in}\n %rtp", 15, "dma_wait"),
    "no sequence": ("%rtp", "%rtp", 2, "holds 0 runtime sequences"),
    "two sequences": ("%rtp", f"{NOTHING}{NOTHING}%rtp", 16, "holds 2 runtime sequences"),
    "sequence with a number": (
        "%rtp",
        "aie.runtime_sequence(%a: i32) { }\n    %rtp",
        15,
        "i32 is not a memref",
    ),
    "sequence of wide elements": (
        "%rtp",
        "aie.runtime_sequence(%a: memref<8xi64>) { }\n    %rtp",
        15,
        "memref<8xi64>",
    ),
    "sequence with an attribute": (
        "%rtp",
        "aie.runtime_sequence() { aiex.npu.dma_wait {symbol = @in, foo} }\n%rtp",
        15,
        "attribute 'foo'",
    ),
    "core's operation in a sequence": (
        "%rtp",
        "aie.runtime_sequence() { aie.objectfifo.release @in(Consume, 1) }\n%rtp",
        15,
        "aie.objectfifo.release is not supported in a runtime sequence",
    ),
    "transfer of a core's buffer": (
        "  }\n}",
        "aie.runtime_sequence() { aiex.npu.dma_memcpy_nd(%rtp[0,0,0,0][1,1,1,16][0,0,0,1]) "
        "{id = 0 : i64, metadata = @in} : memref<16xi32> }\n  }\n}",
        16,
        "only arguments of the sequence",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_design_that_cannot_be_is_refused(case: str) -> None:
    old, new, line, why = REFUSED[case]
    assert why in refusal(changed(PIECES, (old, new)), line)


def test_link_that_meets_in_a_core_is_refused() -> None:
    text = changed(
        PIECES,
        ("aie.objectfifo.link [@in] -> [@in_1, @in_2]([] [0, 8])", ""),
        ("[@out_1, @out_2] -> [@out]([0, 8] [])", "[@in_1] -> [@out_1]([] [])"),
    )
    assert "all its FIFOs must meet in one memtile" in refusal(text, 14)
