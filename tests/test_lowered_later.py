"""What later releases of mlir-aie write otherwise has the same meaning, and attributes that move
nothing are taken for what they are."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from golden import changed
from lowered_modules import LOOP, OUT_OF, after_line, machine, module, text, through
from test_lowering_double import wiring

from npu_matmul.lowered.module import PADDING, Descriptor, Port
from npu_matmul.lowered.reading import read_lowered
from npu_matmul.mlir.reader import DesignError, read_design
from npu_matmul.overlay import Tile
from npu_matmul.verify.run import verify_text

BD = re.compile(r"(aie\.dma_bd\(%\w+ : memref<\S+>), (\d+), (\d+)(?:, \[(.*)\])?\)")
DIM = re.compile(r"<size = (\d+), stride = (\d+)>")


def named(found: re.Match[str]) -> str:
    """A descriptor whose fields have names."""
    loops = DIM.findall(found[4] or "")
    sizes, strides = (", ".join(loop[n] for loop in loops) for n in (0, 1))
    pattern = f" sizes = [{sizes}] strides = [{strides}]" if loops else ""
    return f"{found[1]} offset = {found[2]} len = {found[3]}{pattern})"


def later(source: str) -> str:
    """Named fields, and amounts of locks that are values."""
    source = BD.sub(named, source)
    source = re.sub(r"(aie\.use_lock\(%\w+, \w+), 1\)", r"\1, %amount)", source)
    region = re.compile(r"(= aie\.(?:core|mem|memtile_dma)\(%\w+\) \{\n)")
    return region.sub(r"\1      %amount = arith.constant 1 : i32\n", source)


@pytest.mark.parametrize("name", ["gemm_one_core", "transform", "sixteen_cores"])
def test_named_fields_and_amounts_mean_the_same(name: str) -> None:
    source = later(text(name))
    assert "sizes = [8, 4, 4, 8] strides = [128, 8, 32, 1]" in source or name != "transform"
    assert "Release, %amount)" in source
    assert wiring(read_lowered(source)) == wiring(module(name))
    assert wiring(read_lowered(str(read_design(later(text(name)))))) == wiring(module(name))


def test_a_module_of_a_later_release_runs() -> None:
    verdict = verify_text(later(text("gemm_one_core")), count=3, seed=1)
    assert verdict.ok, verdict.problems
    assert verdict.counters == verify_text(text("gemm_one_core"), count=3, seed=1).counters


LONG = f"{OUT_OF}memref<16xi32>, 0, 16)"
VALUED = f"{OUT_OF}memref<16xi32> offset = %four len = %eight)"


def with_constants(*changes: tuple[str, str]) -> str:
    constants = "    %four = arith.constant 4 : i32\n    %eight = arith.constant 8 : i32\n"
    return changed(after_line(LOOP, "aie.memtile_dma", constants), *changes)


def sent(source: str) -> Descriptor:
    """The memtile's descriptor that sends."""
    return read_lowered(source).programs[Port(Tile(0, 1), "MM2S", 0)].descriptors[0]


@pytest.mark.parametrize("again", [str, lambda source: str(read_design(source))])
def test_offset_and_length_may_be_values(again: Callable[[str], str]) -> None:
    found = read_lowered(again(with_constants((LONG, VALUED)))).programs[
        Port(Tile(0, 1), "MM2S", 0)
    ]
    assert (found.descriptors[0].offset, found.descriptors[0].length) == (4, 8)


@pytest.mark.parametrize("again", [str, lambda source: str(read_design(source))])
def test_each_field_of_a_descriptor_may_be_left_out(again: Callable[[str], str]) -> None:
    for fields, expected in (("len = 8", (0, 8)), ("offset = 4", (4, 16)), ("", (0, 16))):
        source = again(
            changed(LOOP, (LONG, f"{OUT_OF}memref<16xi32> {fields} sizes = [] strides = [])"))
        )
        found = read_lowered(source).programs[Port(Tile(0, 1), "MM2S", 0)].descriptors[0]
        assert (found.offset, found.length, found.dims) == (*expected, ())


def test_an_amount_that_is_computed_is_refused() -> None:
    source = changed(later(text("gemm_one_core")), (
        "      aie.use_lock(%c_prod_lock_0, AcquireGreaterEqual, %amount)",
        "      %sum = arith.addi %amount, %amount : i32\n"
        "      aie.use_lock(%c_prod_lock_0, AcquireGreaterEqual, %sum)",
    ))  # fmt: skip
    with pytest.raises(DesignError, match=r"m\.mlir:\d+: how much of a lock is used must be a con"):
        verify_text(source, "m.mlir", count=1)


def test_as_many_sizes_as_strides() -> None:
    source = changed(
        LOOP, (f"{OUT_OF}memref<16xi32>, 0, 16", f"{OUT_OF}memref<16xi32> sizes = [4] strides = []")
    )
    with pytest.raises(DesignError, match=r"m\.mlir:22:\d+(.|\n)*1 sizes and 0 strides"):
        read_lowered(source, "m.mlir")


def test_a_channel_has_a_pad_value_for_those_of_its_descriptors_that_pad() -> None:
    padded = changed(
        LOOP,
        (f"{OUT_OF}memref<16xi32>, 0, 16)",
         f"{OUT_OF}memref<16xi32> offset = 0 len = 20 sizes = [4, 4] strides = [4, 1] "
         "pad [<const_pad_before = 0, const_pad_after = 0>, "
         "<const_pad_before = 0, const_pad_after = 1>])"),
        ("(MM2S, 0, ^out, ^end)", "(MM2S, 0, ^out, ^end) {pad_value = 7 : i32}"),
    )  # fmt: skip
    found = read_lowered(padded).programs
    assert found[Port(Tile(0, 1), "MM2S", 0)].descriptors[0].pad_value == 7
    assert found[Port(Tile(0, 1), "MM2S", 0)].descriptors[0].elements[4] == PADDING
    assert found[Port(Tile(0, 1), "S2MM", 0)].descriptors[0].pad_value == 0
    data = np.arange(16, dtype=np.int32) - 5
    out = through(machine(padded), data, words_out=20)
    assert out.reshape(4, 5).tolist() == [[*data[4 * n : 4 * n + 4].tolist(), 7] for n in range(4)]
    assert (
        read_lowered(str(read_design(padded)))
        .programs[Port(Tile(0, 1), "MM2S", 0)]
        .descriptors[0]
        .pad_value
        == 7
    )


def test_narrowed_loops_run() -> None:
    """The steps of K counted by an i32, whose value is made an index without sign."""
    source = changed(
        text("gemm_one_core"),
        ("%11 = arith.index_cast %10 : i32 to index\n", "%11 = arith.addi %10, %c0_i32 : i32\n"),
        ("cf.br ^bb15(%c1 : index)", "cf.br ^bb15(%c1_i32 : i32)"),
        ("^bb15(%26: index)", "^bb15(%26: i32)"),
        ("%27 = arith.cmpi slt, %26, %11 : index", "%27 = arith.cmpi slt, %26, %11 : i32"),
        ("%46 = arith.addi %26, %c1 : index",
         "%at = arith.index_castui %26 : i32 to index\n      "
         "%46 = arith.addi %26, %c1_i32 overflow<nsw> : i32"),
        ("cf.br ^bb15(%46 : index)", "cf.br ^bb15(%46 : i32)"),
    )  # fmt: skip
    verdict = verify_text(source, count=2)
    assert verdict.ok, verdict.problems


HARMLESS = (
    ("aie.device(npu1_1col) {", "aie.device(npu1_1col) @main {"),
    ("pkt_id = 27>}", "pkt_id = 27>, allocation_scheme = \"basic-sequential\"}"),
    ("{bd_id = 0 : i32,", "{bd_id = 0 : i32, burst_length = 0 : i32,"),
    ('{dynamic_objfifo_lowering = true, link_files = ["mm.o"]}',
     '{dynamic_objfifo_lowering = true, link_with = "mm.o", link_merge_files = ["a.ll"]}'),
    ("address = 1088 : i32, sym", "address = 1088 : i32, mem_bank = 0 : i32, sym"),
)  # fmt: skip


@pytest.mark.parametrize("change", HARMLESS)
def test_what_moves_nothing_is_left_aside(change: tuple[str, str]) -> None:
    verdict = verify_text(changed(text("gemm_one_core"), change), count=1)
    assert verdict.ok, verdict.problems


def test_a_tools_number_of_a_device_is_left_aside() -> None:
    source = text("gemm_one_core").rstrip().removesuffix("}").rstrip()
    assert source.endswith("  }")
    assert verify_text(f"{source} {{aiecc.pdi_id = 1 : i32}}\n}}\n", count=1).ok


@pytest.mark.parametrize(
    ("after", "attribute"),
    [
        ("next_bd_id = 1 : i32", "packet = #aie.packet_info<pkt_type = 0, pkt_id = 3>"),
        ("next_bd_id = 1 : i32", "iteration = 4 : i32"),
        ("dynamic_objfifo_lowering = true", 'elf_file = "core.elf"'),
    ],
)
def test_what_would_move_something_is_refused(after: str, attribute: str) -> None:
    source = changed(text("gemm_one_core"), (after, f"{after}, {attribute}"))
    with pytest.raises(DesignError, match=rf"attribute '{attribute.split()[0]}' is not supported"):
        read_lowered(source)


def test_starts_that_lead_back_are_refused() -> None:
    source = changed(LOOP, ("^out, ^end)", "^out, ^next)"))
    with pytest.raises(DesignError, match="lead back to an earlier one"):
        read_lowered(source)


def test_constants_may_stand_before_a_start() -> None:
    start = "aie.dma_start(S2MM"
    line = next(line for line in LOOP.splitlines() if start in line)
    source = after_line(LOOP, "aie.memtile_dma", "    %one = arith.constant 1 : i32\n")
    assert line in source
    assert len(read_lowered(source).programs) == 2
