"""Golden designs and their streams compute exactly what NumPy does, and no more than asked for."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from golden import changed, gemm_sequence, launch, machine, synced, unsynced
from numpy.typing import NDArray

from npu_matmul.emulator.machine import Deadlock, Machine, MachineCounters
from npu_matmul.instructions import (
    Descriptor,
    EnableTokens,
    Operation,
    PatchAddress,
    StartTask,
    Stream,
    WaitToken,
    WriteDescriptor,
    decode,
)
from npu_matmul.mlir.reader import DesignError
from npu_matmul.overlay import Channel
from npu_matmul.sequence import Argument, Sequence, Transfer, Wait, linear
from npu_matmul.target import NPU1

TILE = 16
INT32 = np.dtype(np.int32)

# Words in through a memtile that deals them to two cores and joins what the cores copy.
SPLIT = """\
module {
  aie.device(npu1_1col) {
    %shim = aie.tile(0, 0)
    %mem = aie.tile(0, 1)
    %one = aie.tile(0, 2)
    %two = aie.tile(0, 3)
    func.func private @copy(memref<16xi32>, memref<16xi32>)
    aie.objectfifo @in(%shim, {%mem}, 2 : i32) : !aie.objectfifo<memref<32xi32>>
    aie.objectfifo @in_1(%mem, {%one}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo @in_2(%mem, {%two}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo.link [@in] -> [@in_1, @in_2]([] [0, 16])
    aie.objectfifo @out_1(%one, {%mem}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo @out_2(%two, {%mem}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo @out(%mem, {%shim}, 2 : i32) : !aie.objectfifo<memref<32xi32>>
    aie.objectfifo.link [@out_1, @out_2] -> [@out]([0, 16] [])
    CORE 1 CORE 2
  }
}
"""

COPYING = """
    aie.core(%{tile}) {{
      %c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %max = arith.constant 9223372036854775807 : index
      scf.for %o = %c0 to %max step %c1 {{
        %s = aie.objectfifo.acquire @{source}(Consume, 1) : !aie.objectfifosubview<memref<16xi32>>
        %a = aie.objectfifo.subview.access %s[0] : !aie.objectfifosubview<memref<16xi32>> \
-> memref<16xi32>
        %t = aie.objectfifo.acquire @{target}(Produce, 1) : !aie.objectfifosubview<memref<16xi32>>
        %b = aie.objectfifo.subview.access %t[0] : !aie.objectfifosubview<memref<16xi32>> \
-> memref<16xi32>
        func.call @copy(%a, %b) : (memref<16xi32>, memref<16xi32>) -> ()
        aie.objectfifo.release @{source}(Consume, 1)
        aie.objectfifo.release @{target}(Produce, 1)
      }}
      aie.end
    }}
"""
SPLIT = changed(
    SPLIT,
    ("CORE 1", COPYING.format(tile="one", source="in_1", target="out_1")),
    ("CORE 2", COPYING.format(tile="two", source="in_2", target="out_2")),
)


def pack(matrix: NDArray[np.int8], by_columns: bool) -> NDArray[np.int8]:
    """Row-major tiles of 16 x 16, those of a row (or of a column) of tiles after each other."""
    rows, columns = matrix.shape[0] // TILE, matrix.shape[1] // TILE
    tiles = matrix.reshape(rows, TILE, columns, TILE).swapaxes(1, 2)
    return (tiles.swapaxes(0, 1) if by_columns else tiles).reshape(-1)


def check_gemm(booted: Machine, Mt: int, Kt: int, Nt: int, seed: int) -> None:
    a = random_int8(seed, Mt * TILE, Kt * TILE)
    b = random_int8(seed + 1, Kt * TILE, Nt * TILE)
    ab = synced(np.concatenate([pack(a, by_columns=False), pack(b, by_columns=True)]))
    c = unsynced(Mt * Nt * TILE * TILE * 4)
    launch(booted, gemm_sequence(Mt, Kt, Nt), [ab, c])
    tiles = c.words.view(np.int32).reshape(Nt, Mt, TILE, TILE)
    got = tiles.transpose(1, 2, 0, 3).reshape(Mt * TILE, Nt * TILE)
    assert_equal_bits(got, product_int32(a, b))
    assert c.known.all()


def test_own_gemm_sequence_is_the_golden_one() -> None:
    assert gemm_sequence(2, 3, 2) == golden.sequence(golden.design("gemm_one_core"))


def test_gemm_computes_the_product() -> None:
    check_gemm(machine(golden.design("gemm_one_core")), 2, 3, 2, seed=1)


def test_launches_follow_each_other_with_any_k() -> None:
    booted = machine(golden.design("gemm_one_core"))
    products = tiles = 0
    for seed, (Mt, Kt, Nt) in enumerate(
        [(2, 3, 2), (1, 1, 1), (3, 5, 1), (1, 2, 4), (3, 1, 3), (2, 7, 1), (2, 7, 1), (1, 4, 3)]
    ):
        check_gemm(booted, Mt, Kt, Nt, seed=10 * seed)
        products += Mt * Kt * Nt
        tiles += Mt * Nt
        assert booted.counters.launches == seed + 1
        # Each C tile is zeroed when its core gets it; the first one was at boot.
        assert booted.counters.kernel_calls == products + tiles + 1


def test_counters_are_what_the_sequence_asks() -> None:
    booted = machine(golden.design("gemm_one_core"))
    assert booted.counters == MachineCounters(0, 0, 0, kernel_calls=1)
    check_gemm(booted, 2, 3, 4, seed=2)
    inputs, output = 2 * (2 * 3 * 4) * 256, 2 * 4 * 1024
    assert booted.counters == MachineCounters(1, 2 + 4, inputs + output, 1 + 2 * 4 + 2 * 3 * 4)


def test_whole_array_computes_the_product() -> None:
    M, K, N = 1536, 1024, 2048
    a, b = random_int8(3, M, K), random_int8(4, K, N)
    # A: [core row][block][k][64 x 64], B: [core column][block][k][64 x 128].
    a_region = a.reshape(6, 4, 64, 16, 64).transpose(1, 0, 3, 2, 4)
    b_region = b.reshape(16, 64, 4, 4, 128).transpose(3, 2, 0, 1, 4)
    ab = synced(np.concatenate([a_region.reshape(-1), b_region.reshape(-1)]))
    c = unsynced(M * N * 4)
    booted = machine(golden.design("sixteen_cores"))
    booted.launch(decode(golden.stream("sixteen_cores")), [ab, c])
    # C: [core column][block column][block row][core row][64 x 128]
    tiles = c.words.view(np.int32).reshape(4, 4, 6, 4, 64, 128)
    got = tiles.transpose(2, 3, 4, 1, 0, 5).reshape(M, N)
    assert_equal_bits(got, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32))  # exact
    assert booted.counters == MachineCounters(
        launches=1,
        dma_tasks=4 + 4 + 16,
        dma_bytes=M * N * 4 + M * K * 4 + K * N * 6,
        kernel_calls=6144 + 24 * 16 + 16,
    )


def test_transformation_reorders_on_shim_and_memtile() -> None:
    matrix = random_int8(5, 64, 64)
    out = unsynced(4096)
    booted = machine(golden.design("transform"))
    for launches in (1, 2):
        out = unsynced(4096)
        booted.launch(decode(golden.stream("transform")), [synced(matrix), out])
        blocks = matrix.reshape(2, 32, 2, 32).transpose(0, 2, 1, 3)  # of 32 x 32, row-major
        small = blocks.reshape(4, 8, 4, 4, 8).transpose(0, 1, 3, 2, 4)  # of 4 x 8 inside
        assert_equal_bits(out.words.view(np.int8), small.reshape(-1))
        assert booted.counters == MachineCounters(
            launches, 2 * launches, 8192 * launches, 4 * launches
        )


def run_split(text: str, elements: int = 3) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """What went in and what came out, one row per element."""
    words = np.arange(elements * 32, dtype=np.int32)
    out = unsynced(words.nbytes)
    size = Argument("x", words.size, INT32)
    steps = (
        Transfer("out", 1, descriptor=0, **linear(0, words.size)),
        Transfer("in", 0, descriptor=1, **linear(0, words.size)),
        Wait("out"),
    )
    launch(machine(text), Sequence("copy", (size, size), steps), [synced(words), out])
    return words.reshape(-1, 32), out.words.view(np.int32).reshape(-1, 32)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_distribution_and_join_keep_each_piece_in_its_place(depth: int) -> None:
    depths = f"[{depth}, {depth}]"
    given, got = run_split(SPLIT.replace("2 : i32", depths), elements=7)
    assert_equal_bits(got, given)


def test_runs_step_through_memory() -> None:
    words, out = np.arange(96, dtype=np.int32), unsynced(384)
    sizes = Argument("a", 96, INT32), Argument("b", 96, INT32)
    steps = (
        Transfer("out", 1, descriptor=0, **linear(0, 32, runs=2, stride=64)),
        Transfer("in", 0, descriptor=1, **linear(0, 16, runs=4, stride=24)),
        Wait("out"),
    )
    launch(machine(SPLIT), Sequence("copy", sizes, steps), [synced(words), out])
    runs = [words[24 * run : 24 * run + 16] for run in range(4)]
    assert_equal_bits(out.words.view(np.int32)[:32], np.concatenate(runs[:2]))
    assert_equal_bits(out.words.view(np.int32)[64:], np.concatenate(runs[2:]))


@pytest.mark.parametrize("change", [("[] [0, 16]", "[] [16, 0]"), ("[0, 16] []", "[16, 0] []")])
def test_offsets_say_which_piece_is_whose(change: tuple[str, str]) -> None:
    given, got = run_split(changed(SPLIT, change))
    assert_equal_bits(got, np.roll(given, 16, axis=1))


def test_layout_at_a_cores_input_scatters() -> None:
    dims = "dimensionsFromStream [<size = 2, stride = 1>, <size = 8, stride = 2>]"
    given, got = run_split(changed(SPLIT, ("{%two}", f"{{%two {dims}}}")))
    assert_equal_bits(got[:, :16], given[:, :16])
    for want, row in zip(given[:, 16:], got[:, 16:], strict=True):
        assert_equal_bits(row, want.reshape(2, 8).T.reshape(-1))


def test_layout_at_a_cores_output_gathers() -> None:
    dims = "dimensionsToStream [<size = 2, stride = 1>, <size = 8, stride = 2>]"
    given, got = run_split(changed(SPLIT, ("@out_1(%one", f"@out_1(%one {dims}")))
    assert_equal_bits(got[:, 16:], given[:, 16:])
    for want, row in zip(given[:, :16], got[:, :16], strict=True):
        assert_equal_bits(row, want.reshape(8, 2).T.reshape(-1))


def test_broadcast_gives_every_consumer_every_element() -> None:
    whole = "aie.objectfifo @in(%shim, {%one, %two}, 2 : i32) : !aie.objectfifo<memref<16xi32>>\n"
    start, end = SPLIT.index("    aie.objectfifo @in("), SPLIT.index("    aie.objectfifo @out_1")
    text = SPLIT[:start] + whole + SPLIT[end:].replace("@in_1", "@in").replace("@in_2", "@in")
    words, out = np.arange(48, dtype=np.int32), unsynced(48 * 8)
    steps = (
        Transfer("out", 1, descriptor=0, **linear(0, 96)),
        Transfer("in", 0, descriptor=1, **linear(0, 48)),
        Wait("out"),
    )
    sizes = Argument("a", 48, INT32), Argument("b", 96, INT32)
    booted = machine(text)
    launch(booted, Sequence("copy", sizes, steps), [synced(words), out])
    want = np.repeat(words.reshape(3, 1, 16), 2, axis=1)
    assert_equal_bits(out.words.view(np.int32), want.reshape(-1))
    assert booted.counters.dma_bytes == 48 * 4 + 96 * 4  # a broadcast reads once


def test_transfers_need_not_end_with_an_element() -> None:
    """Tasks of 24 and of 40 words make two elements of 32, on the way in and on the way out."""
    words, out = np.arange(64, dtype=np.int32), unsynced(256)
    size = Argument("x", 64, INT32)
    steps = (
        Transfer("out", 1, descriptor=0, **linear(0, 24)),
        Transfer("out", 1, descriptor=1, **linear(24, 40)),
        Transfer("in", 0, descriptor=2, **linear(0, 24)),
        Transfer("in", 0, descriptor=3, **linear(24, 40)),
        Wait("out"),
        Wait("out"),
    )
    launch(machine(SPLIT), Sequence("copy", (size, size), steps), [synced(words), out])
    assert_equal_bits(out.words.view(np.int32), words)


@pytest.mark.parametrize(
    ("sizes", "strides"),
    [((2, 2, 4, 2), (100, 30, 5, 2)), ((1, 4, 8, 1), (0, 40, 3, 1)), ((4, 8, 1, 1), (50, 6, 1, 1))],
)
def test_strided_output_touches_only_its_words(
    sizes: tuple[int, int, int, int], strides: tuple[int, int, int, int]
) -> None:
    words, out = np.arange(32, dtype=np.int32), unsynced(1024)
    arguments = Argument("a", 32, INT32), Argument("b", 256, INT32)
    steps = (
        Transfer("out", 1, 3, sizes, strides, descriptor=0),
        Transfer("in", 0, descriptor=1, **linear(0, 32)),
        Wait("out"),
    )
    launch(machine(SPLIT), Sequence("copy", arguments, steps), [synced(words), out])
    want = unsynced(1024)
    where = [3 + int(np.dot(index, strides)) for index in np.ndindex(*sizes)]
    want.words[where] = words
    want.known[where] = True
    assert_equal_bits(out.words, want.words)
    assert_equal_bits(out.known, want.known)


def test_descriptor_goes_on_where_its_last_task_stopped() -> None:
    words, out = np.arange(64, dtype=np.int32), unsynced(256)
    into, outof = Channel(0, "MM2S", 0), Channel(0, "S2MM", 0)
    walking = Descriptor(16, iterations=4, iteration_step=16)
    operations: tuple[Operation, ...] = (
        WriteDescriptor(0, 0, Descriptor(64)),
        PatchAddress(0, 0, 1, 0),
        EnableTokens(outof),
        StartTask(outof, 0, 1, True),
        WriteDescriptor(0, 1, walking),
        PatchAddress(0, 1, 0, 0),
        StartTask(into, 1, 3, False),
        StartTask(into, 1, 1, False),
        WaitToken(outof),
    )
    machine(SPLIT).launch(Stream(NPU1, 1, operations), [synced(words), out])
    assert_equal_bits(out.words.view(np.int32), words)


def test_input_that_ends_too_early_is_a_deadlock_naming_everyone() -> None:
    """one_core's sequence gives its core less B than its A and C need."""
    booted = machine(golden.design("one_core"))
    memories = [synced(np.zeros(65536, np.int8)), unsynced(65536)]
    with pytest.raises(Deadlock) as caught:
        booted.launch(decode(golden.stream("one_core")), memories)
    assert str(caught.value).splitlines() == [
        "launch 0: nothing can move:",
        "  the runtime sequence waits for a token of shim (0, 0) S2MM 0 (@c)",
        "  shim (0, 0) MM2S 0 (@a) waits for a free element of @a in core (0, 2)",
        "  shim (0, 0) MM2S 1 (@b) waits for a task",
        "  shim (0, 0) S2MM 0 (@c) waits for a filled element of @c in core (0, 2)",
        "  core (0, 2) waits for a filled element of @b in core (0, 2) at design.mlir:23",
    ]


def test_design_without_cores_takes_nothing() -> None:
    booted = machine(golden.design("two_columns"))
    memories = [synced(np.zeros(131072, np.int16)), unsynced(262144)]
    with pytest.raises(Deadlock, match=r"waits for a free element of @b1_l2l1 in core \(1, 2\)"):
        booted.launch(decode(golden.stream("two_columns")), memories)


def test_acquire_before_a_loop_that_releases_it_is_refused_with_the_cure() -> None:
    text = golden.design("gemm_one_core_race")
    line = next(n for n, line in enumerate(text.splitlines(), 1) if "%sa =" in line)
    with pytest.raises(DesignError) as caught:
        machine(text)
    assert str(caught.value).startswith(
        f"design.mlir:{line}: core (0, 2): @a is acquired in an outer"
    )
    assert "peel the first step out of the loop" in str(caught.value)
