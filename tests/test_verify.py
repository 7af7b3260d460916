"""``verify`` finds good modules right, names what is wrong with bad ones, and says what it ran."""

from __future__ import annotations

import itertools
import re

import golden
import numpy as np
import pytest
from golden import changed
from lowered_modules import after_line, line_of, text

from npu_matmul.design import design_text
from npu_matmul.emulator import POISON
from npu_matmul.instructions import decode
from npu_matmul.kernel import load_kernel
from npu_matmul.mlir.reader import DesignError, read_design
from npu_matmul.schedule import cover
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid
from npu_matmul.verify.product import NoProduct, find_symbols, operands
from npu_matmul.verify.run import verify_text
from npu_matmul.verify.subject import Subject, stream_problems
from npu_matmul.verify.traffic import trial_memories

GEMM, TRANSFORM, SIXTEEN = text("gemm_one_core"), text("transform"), text("sixteen_cores")
WIDTH = 80


def test_golden_modules_and_designs_are_right() -> None:
    for source, insts in (
        (GEMM, "gemm_one_core"),
        (golden.design("gemm_one_core"), "gemm_one_core"),
        (TRANSFORM, "transform"),
        (golden.design("transform"), "transform"),
    ):
        verdict = verify_text(source, insts=golden.stream(insts), count=16, seed=3)
        assert verdict.ok
        assert verdict.disagrees == ""
        assert len(verdict.schedules) == 16
        assert verdict.bytes_compared > 10_000


def test_what_was_run_is_counted() -> None:
    verdict = verify_text(GEMM, count=2, seed=1)
    # The module's own launch makes 4 tiles of C from 12 products; the made-up ones 12 from 32.
    launches, tiles, products = 1 + 6, 4 + 10, 12 + (6 + 5 + 3 + 7 + 4 + 4)
    assert verdict.reference == "C = A @ B, int8 to int32, tiles 16x16x16, 1x1 cores"
    assert verdict.schedules == ["fixed", "reversed"]
    assert verdict.counters.launches == 2 * launches
    assert verdict.counters.kernel_calls == 2 * (1 + tiles + products)
    assert verdict.counters.transfers == 2 * (tiles + 2 * products)
    assert verdict.bytes_compared == 2 * tiles * 1024


def test_the_same_seed_repeats_a_run_and_another_does_not() -> None:
    runs = [verify_text(GEMM, count=15, seed=seed).schedules[-1] for seed in (4, 4, 5)]
    assert runs == ["random 6", "random 6", "random 7"]
    draws = [operands(np.dtype(np.int8), 99, np.random.default_rng(s)).tobytes() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_operands_are_signed_and_have_extremes() -> None:
    drawn = operands(np.dtype(np.int8), 4096, np.random.default_rng(0))
    assert (drawn.min(), drawn.max()) == (-128, 127)
    bf16 = operands(load_kernel("matmul_64x512", "bf16").a_dtype, 4096, np.random.default_rng(0))
    assert (float(bf16.min()), float(bf16.max())) == (-8, 8)


FLOW_A = "    aie.flow(%mem_tile_{}_1, DMA : 0, %tile_2_{}, DMA : 0)\n"
C_PIECE = "    aie.flow(%tile_0_{}, DMA : 0, %mem_tile_0_1, DMA : {})\n"
SWAPPED_C = changed(
    SIXTEEN,
    (C_PIECE.format(2, 2), C_PIECE.format(3, 2)),
    (C_PIECE.format(3, 3), C_PIECE.format(2, 3)),
)
B_EMPTY = ': i32, sym_name = "B_L2L1_3_1_cons_prod'
C_0 = "%c_buff_0 : memref<256xi32>"
COUNTED = """\
      %38 = arith.addi %37, %c1_i32 : i32
      %39 = arith.cmpi sge, %38, %c2_i32 : i32
      %40 = arith.subi %38, %c2_i32 : i32
      %41 = arith.select %39, %40, %38 : i32
      memref.store %41, %_anonymous0[%c2]"""
DELIBERATE = {
    "a lock count off by one": (
        changed(SIXTEEN, (f"2 {B_EMPTY}", f"3 {B_EMPTY}")),
        "locks",
        r"m\.mlir:{B_L2L1_3_1_cons_prod_lock_0 = }: @B_L2L1_3_1_cons_prod_lock_0 of core \(3, 3\): "
        r".*3 in all, where core \(3, 3\) S2MM \d goes round 2",
    ),
    "a wrong offset in a descriptor": (
        changed(SIXTEEN, ("8192, 8192) {bd_id = 7 ", "16384, 8192) {bd_id = 7 ")),
        "race",
        r"memtile \(0, 1\) MM2S 2 at m\.mlir:{next_bd_id = 8 } \(transfer 1\) reads byte 65536 of "
        r"@C_L2L3_0_buff_0 in memtile \(0, 1\), which memtile \(0, 1\) S2MM 4 writes",
    ),
    "swapped flows of A": (
        changed(SIXTEEN, (FLOW_A.format(0, 2), ""),
                (FLOW_A.format(1, 3), FLOW_A.format(0, 3) + FLOW_A.format(1, 2))),
        "wiring",
        r"A of core \(2, 2\), @A_L2L1_0_2_cons_buff_0, is connected to @A_L3L2_1_shim_alloc "
        r"instead of @A_L3L2_0_shim_alloc by the flows at "
        r"m\.mlir:{%mem_tile_1_1, DMA : 0, %tile_2_2}",
    ),
    "swapped flows of C": (
        SWAPPED_C,
        "values",
        r"launch of 4 steps in K and 1 tiles of C per core: C tile 0 of core \(0, 2\), element \d+ "
        r"of 8192: got",
    ),
    "a missing release": (
        changed(SIXTEEN, ("      aie.use_lock(%A_L3L2_0_cons_cons_lock_0, Release, 1)\n", "")),
        "locks",
        r"m\.mlir:{aie.dma_bd(%A_L3L2_0_cons_buff_0}: memtile \(0, 1\) S2MM 0: it acquires 1 of "
        r"@A_L3L2_0_cons_prod_lock_0 and releases nothing; ",
    ),
    "a missing release of a core": (
        changed(SIXTEEN, ("      aie.use_lock(%C_L1L2_0_0_cons_lock_0, Release, 1)\n", "")),
        "deadlock",
        r"core \(0, 2\) waits for at least 1 of lock @C_L1L2_0_0_prod_lock_0 of core \(0, 2\) at "
        r"m\.mlir:{aie.use_lock(%C_L1L2_0_0_prod_lock_0, AcquireGreaterEqual}",
    ),
    "a stride wrong by one": (
        changed(TRANSFORM, ("<size = 4, stride = 32>", "<size = 4, stride = 33>")),
        "granularity",
        r"m\.mlir:{stride = 33}: memtile \(0, 1\) MM2S 0, descriptor of @in_l3l2_cons_buff_0: "
        r"<size = 4, stride = 33>: a stride of 33 B; DMAs step by whole words of 4 B",
    ),
    "a stride of words wrong by one": (
        changed(GEMM, (f"{C_0}, 0, 256)",
                       f"{C_0}, 0, 256, [<size = 16, stride = 15>, <size = 16, stride = 1>])")),
        "pattern",
        r"m\.mlir:{stride = 15}: @c_buff_0 in core \(0, 2\): its descriptors read 241 of its 256 ",
    ),
    "a counter that goes wrong in its third round": (
        changed(SIXTEEN, (COUNTED, COUNTED.replace("addi", "subi"))),
        "race",
        r"core \(0, 2\) at m\.mlir:\d+ passes @matmul the buffer @B_L2L1_0_0_cons_buff_0, which it",
    ),
    "a broadcast to three cores of four": (
        changed(SIXTEEN, ("    aie.flow(%mem_tile_3_1, DMA : 1, %tile_3_4, DMA : 1)\n", "")),
        "wiring",
        r"m\.mlir:\d+: core \(3, 4\) S2MM 1: no flow leads to it: nothing is sent to it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DELIBERATE)
def test_each_deliberate_mistake_is_caught_with_its_place(case: str) -> None:
    source, kind, message = DELIBERATE[case]
    for part in [piece.partition("}")[0] for piece in message.split("{")[1:]]:
        message = message.replace("{" + part + "}", str(line_of(source, part)))
    verdict = verify_text(without_sequence(source), "m.mlir", count=1, seed=2)
    assert verdict.disagrees == "module"
    problems = [problem.text for problem in verdict.problems if problem.kind == kind]
    assert any(re.search(message, problem) for problem in problems), verdict.problems


def without_sequence(source: str) -> str:
    """Of the sixteen cores the launch is long: the made-up ones show the same. Lines stay."""
    if "@C_L2L3_3" not in source:
        return source
    start, end = (
        source.index("    aie.runtime_sequence"),
        source.index("    aie.shim_dma_allocation"),
    )
    return source[:start] + "\n" * source[start:end].count("\n") + source[end:]


def test_a_join_in_another_order_is_found_before_it_runs() -> None:
    subject = Subject(read_design(without_sequence(SWAPPED_C), "m.mlir"), "m.mlir", None)
    line = line_of(SWAPPED_C, "C_L1L2_0_1_buff_0 = aie.buffer")
    assert [problem.text.partition(", by")[0] for problem in subject.problems] == [
        f"m.mlir:{line}: C of core (0, 3), @C_L1L2_0_1_buff_0, lands in @C_L2L3_0_shim_alloc "
        "before that of the core row before it"
    ]


def test_inputs_and_c_may_share_a_buffer() -> None:
    """A, B, then C: what is read is given, what is written is poison."""
    one = GEMM.replace("%arg0: memref<3072xi8>, %arg1: memref<1024xi32>", "%arg0: memref<7168xi8>")
    one = one.replace(": memref<3072xi8>\n", ": memref<7168xi8>\n")
    c_alone = "%arg1[0, 0, 0, 0][1, 1, 1, 1024][0, 0, 0, 1]"
    shared = changed(one, (c_alone, "%arg0[0, 0, 0, 3072][1, 1, 1, 4096][0, 0, 0, 1]"))
    shared = shared.replace(": memref<1024xi32>\n", ": memref<7168xi8>\n")
    verdict = verify_text(shared, "m.mlir", count=2)
    assert verdict.ok, verdict.problems
    (trial,) = Subject(read_design(shared), "m.mlir", None).own
    (memory,) = trial_memories(trial, np.random.default_rng(1))
    assert memory.known.tolist() == [True] * 768 + [False] * 1024
    assert set(memory.words[768:].view(np.uint8)) == {POISON}


def test_functions_that_nobody_calls_need_no_model() -> None:
    unused = "    func.func private @relu(memref<256xi32>)\n"
    assert verify_text(after_line(GEMM, "func.func private @zero", unused), count=1).ok
    unused = "    func.func private @scale(memref<256xi32>, i32)\n"
    assert verify_text(after_line(GEMM, "func.func private @zero", unused), count=1).ok


def test_a_module_before_allocation_is_told_so() -> None:
    source = GEMM.replace("address = 1024 : i32, ", "")
    verdict = verify_text(source, "m.mlir", count=1)
    line = line_of(GEMM, "%rtp = aie.buffer")
    assert [problem.text for problem in verdict.problems] == [
        f"m.mlir:{line}: @rtp in core (0, 2): a buffer without an address; run the toolchain's "
        "allocator first"
    ]


def test_what_cannot_be_run_is_judged_only() -> None:
    verdict = verify_text(changed(GEMM, ("address = 1088", "address = 65000")), count=3)
    assert [problem.kind for problem in verdict.problems] == ["memory"]
    assert verdict.schedules == []


def test_what_is_no_product_must_give_the_same_under_every_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdict = verify_text(TRANSFORM, count=4)
    assert verdict.ok
    assert verdict.product is None
    assert verdict.bytes_compared == 3 * 4096
    made = itertools.count()

    def drifting(source: np.ndarray, target: np.ndarray) -> None:
        target[:] = source + (next(made) == 9)  # the second element of the third run

    monkeypatch.setattr("npu_matmul.verify.product._copy", drifting)
    verdict = verify_text(TRANSFORM, count=4)
    assert [problem.kind for problem in verdict.problems] == ["values"]
    assert re.match(
        r"launch @run: byte 1,024 of %arg1 is (\d+), by fixed it is \d+; 1,024 of 4,096 bytes",
        verdict.problems[0].text,
    )
    assert verdict.schedules == ["fixed", "reversed", "core last"]


def test_another_stream_is_told_from_a_wrong_module() -> None:
    theirs = bytearray(golden.stream("gemm_one_core"))
    words = np.frombuffer(theirs, "<u4")
    where = next(n for n, word in enumerate(words) if word == 0x300 // 4)  # a length of B, in words
    theirs[4 * where : 4 * where + 4] = np.uint32(words[where] - 1).tobytes()
    verdict = verify_text(GEMM, "m.mlir", insts=bytes(theirs), count=2)
    assert verdict.disagrees == "stream"
    line = line_of(GEMM, "{id = 2 : i64")
    assert [problem.text for problem in verdict.problems] == [
        f"m.mlir:{line}: operation 8: WriteDescriptor of descriptor 2 of column 0 of the given "
        "stream has words 191 where the assembled one has 192"
    ]


def test_streams_of_other_lengths_and_kinds_differ() -> None:
    ours = golden.stream("gemm_one_core")
    shorter = decode(ours)
    shorter = type(shorter)(shorter.target, shorter.columns, shorter.operations[:-1])
    assert (
        "the given stream ends; it has 14 operations"
        in stream_problems(ours, shorter.encode())[0].text
    )
    other = golden.stream("transform")
    assert stream_problems(ours, other)[0].text == (
        "operation 0: the given stream has WriteDescriptor of descriptor 0 of column 0, the "
        "assembled one WriteWord to core (0, 2) at 0x400"
    )
    assert "cannot be read" in stream_problems(ours, ours[:-4])[0].text
    assert not stream_problems(ours, ours)


@pytest.mark.parametrize(("name", "variant"), [("matmul_16x16", "int8"), ("matmul_64x512", "bf16")])
def test_the_projects_own_designs_are_right(name: str, variant: str) -> None:
    kernel = load_kernel(name, variant)
    verdict = verify_text(design_text(kernel), count=1)
    assert verdict.ok
    assert verdict.product is not None
    assert verdict.product.kernel == kernel


def test_a_stream_without_a_sequence_is_run_as_it_is() -> None:
    kernel = load_kernel("matmul_16x16")
    shape = cover(TileGrid(kernel, 40, 70, 33))[0].shape
    verdict = verify_text(design_text(kernel), insts=launch_stream(kernel, shape), count=2)
    assert verdict.ok
    assert verdict.counters.launches == 2 * 7


def test_symbols_without_a_meaning_are_refused() -> None:
    device = read_design(GEMM.replace("@mm(", "@relu("))
    with pytest.raises(NoProduct, match="there is no model of @relu with 3 buffers; known are the"):
        find_symbols(device)
    with pytest.raises(DesignError, match="there is no model of @relu"):
        verify_text(GEMM.replace("@mm(", "@relu("))


def test_a_module_that_gives_nothing_to_run_is_refused() -> None:
    with pytest.raises(DesignError, match="there is nothing to run: the module has no runtime seq"):
        verify_text("aie.device(npu1) { %t = aie.tile(0, 2) }")


PERMUTED = changed(
    TRANSFORM,
    ("[<size = 8, stride = 128>, <size = 4, stride = 8>, ",
     "[<size = 4, stride = 8>, <size = 8, stride = 128>, "),
)  # fmt: skip
DESIGN = golden.design("transform"), "design.mlir"


def test_a_lowered_module_must_give_what_its_design_gives() -> None:
    """Loops in another order give the same under every schedule: only the design tells."""
    assert verify_text(PERMUTED, "m.mlir", count=4).ok
    verdict = verify_text(PERMUTED, "m.mlir", design=DESIGN, count=4)
    assert [problem.kind for problem in verdict.problems] == ["values"]
    assert re.match(
        r"launch @run: byte 32 of %arg1 is \d+, by design.mlir under fixed it is \d+; [\d,]+ of "
        "4,096 bytes differ",
        verdict.problems[0].text,
    )
    good = verify_text(TRANSFORM, design=DESIGN, insts=golden.stream("transform"), count=4)
    assert good.ok
    assert good.reference == "what design.mlir gives"
    assert good.bytes_compared == 4 * 4096


def test_a_product_can_be_held_against_its_design_too() -> None:
    verdict = verify_text(GEMM, design=(golden.design("gemm_one_core"), "d.mlir"), count=2)
    assert verdict.ok, verdict.problems
    assert verdict.reference.endswith("1x1 cores, and what d.mlir gives")
    assert verdict.bytes_compared == 2 * 2 * 14 * 1024  # each C with the product and the design


def test_what_moves_nothing_is_not_shown_to_be_right() -> None:
    """Flows that pass the memtile by: all else is at rest, and every schedule gives the same."""
    flow = "aie.flow(%{}, DMA : 0, %{}, DMA : 0)"
    shim, mem, core = "shim_noc_tile_0_0", "mem_tile_0_1", "tile_0_2"
    source = changed(TRANSFORM, (flow.format(shim, mem), flow.format(mem, mem)),
                     (flow.format(mem, core), flow.format(shim, core)))  # fmt: skip
    verdict = verify_text(source, "m.mlir", count=3)
    line = line_of(source, "memtile_dma(") + 1
    assert {problem.kind for problem in verdict.problems} == {"unused"}
    assert [problem.text for problem in verdict.problems] == [
        f"m.mlir:{line + below}: memtile (0, 1) {channel} moved and computed nothing in any launch"
        for below, channel in ((0, "S2MM 0"), (12, "MM2S 0"))
    ]


def test_a_sequence_beyond_a_limit_is_a_mistake_with_its_place() -> None:
    source = changed(GEMM, ("[1, 1, 1, 1024][0, 0, 0, 1]", "[1, 1, 1, 1028][0, 0, 0, 1]"))
    verdict = verify_text(source, "m.mlir", count=1)
    line = line_of(source, "1028")
    assert [problem.kind for problem in verdict.problems] == ["sequence"]
    assert verdict.problems[0].text.startswith(
        f"m.mlir:{line}: sequence @gemm, step 1, transfer of @c_shim_alloc: reaches element 1,027"
    )
    assert verdict.counters.launches == 6  # those made up run all the same
