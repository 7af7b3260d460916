"""What the toolchain made of the golden designs computes the same as the designs, in any order."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from golden import changed, gemm_sequence, launch, synced, unsynced
from lowered_modules import SYMBOLS, after_line, every_schedule, line_of, machine, module, text
from numpy.typing import NDArray

from npu_matmul.assemble import assemble
from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.actors import Deadlock, RestStateError
from npu_matmul.emulator.shim import DeviceMemory
from npu_matmul.instructions import Stream, WriteWord, decode
from npu_matmul.lowered.locks import LockError
from npu_matmul.lowered.machine import LoweredCounters, LoweredMachine
from npu_matmul.lowered.memory import RaceError
from npu_matmul.mlir.reader import read_design
from npu_matmul.overlay import Tile
from npu_matmul.sequence import Argument, Sequence, Step, Transfer, Wait, WriteParameter, linear
from npu_matmul.target import NPU1
from npu_matmul.verify.product import find_product, find_symbols
from npu_matmul.verify.traffic import made_up_trials

TILE = 16
SHAPES = [(2, 3, 2), (1, 5, 1), (3, 1, 1), (1, 7, 1), (1, 2, 2), (3, 4, 1)]
MANY = 100


def pack(matrix: NDArray[np.int8], by_columns: bool) -> NDArray[np.int8]:
    rows, columns = matrix.shape[0] // TILE, matrix.shape[1] // TILE
    tiles = matrix.reshape(rows, TILE, columns, TILE).swapaxes(1, 2)
    return (tiles.swapaxes(0, 1) if by_columns else tiles).reshape(-1)


def lowered_sequence(Mt: int, Kt: int, Nt: int) -> Sequence:
    """The sequence of the design, under the names that lowering gives to shim channels."""
    design = gemm_sequence(Mt, Kt, Nt)
    steps: list[Step] = []
    for step in design.steps:
        if isinstance(step, WriteParameter):
            steps.append(step)
        elif isinstance(step, Wait):
            steps.append(Wait(f"{step.fifo}_shim_alloc"))
        else:
            steps.append(Transfer(**{**vars(step), "fifo": f"{step.fifo}_shim_alloc"}))
    return Sequence(design.name, design.arguments, tuple(steps))


def gemm(booted: LoweredMachine, shape: tuple[int, int, int], seed: int) -> None:
    """One launch, compared with NumPy."""
    Mt, Kt, Nt = shape
    a = random_int8(seed, Mt * TILE, Kt * TILE)
    b = random_int8(seed + 1, Kt * TILE, Nt * TILE)
    ab = synced(np.concatenate([pack(a, by_columns=False), pack(b, by_columns=True)]))
    c = unsynced(Mt * Nt * TILE * TILE * 4)
    booted.launch(decode(assemble(lowered_sequence(*shape), booted.module.overlay)), [ab, c])
    tiles = c.words.view(np.int32).reshape(Nt, Mt, TILE, TILE)
    got = tiles.transpose(1, 2, 0, 3).reshape(Mt * TILE, Nt * TILE)
    assert_equal_bits(got, product_int32(a, b))


def test_products_with_changing_k_are_right_under_100_schedules_without_a_reset() -> None:
    for number, schedule in enumerate(every_schedule(MANY)):
        booted = machine(module("gemm_one_core"), schedule)
        for seed, shape in enumerate(SHAPES):
            gemm(booted, shape, 100 * number + 10 * seed)


def test_a_layout_transformation_is_right_under_100_schedules() -> None:
    stream = decode(golden.stream("transform"))
    for number, schedule in enumerate(every_schedule(MANY)):
        booted = machine(module("transform"), schedule)
        for seed in (number, number + MANY):
            matrix, out = random_int8(seed, 64, 64), unsynced(4096)
            booted.launch(stream, [synced(matrix), out])
            blocks = matrix.reshape(2, 32, 2, 32).transpose(0, 2, 1, 3)
            small = blocks.reshape(4, 8, 4, 4, 8).transpose(0, 1, 3, 2, 4)
            assert_equal_bits(out.words.view(np.int8), small.reshape(-1))


def trials(name: str) -> list[tuple[Stream, tuple[Argument, ...]]]:
    """Small launches of a product, with K changing from each to the next."""
    device = read_design(text(name))
    _, kernel, symbols = find_symbols(device)
    product = find_product(device, module(name).overlay, kernel, symbols)
    return [(t.stream, t.arguments) for t in made_up_trials(product, module(name).overlay)]


def memories(arguments: tuple[Argument, ...], seed: int) -> list[DeviceMemory]:
    """Random signed operands in all buffers but the last, which is C."""
    filled = [
        synced(random_int8(seed + n, a.elements * a.dtype.itemsize))
        for n, a in enumerate(arguments[:-1])
    ]
    return [*filled, unsynced(arguments[-1].elements * arguments[-1].dtype.itemsize)]


def test_both_levels_agree_on_sixteen_cores_element_by_element() -> None:
    """Three launches in a row with K of 2, 1 and 3 steps, under schedules of every kind."""
    launches = trials("sixteen_cores")
    design = golden.machine(golden.design("sixteen_cores"))
    expected, given = [], []
    for seed, (stream, arguments) in enumerate(launches):
        given.append(memories(arguments, 10 * seed))
        design.launch(stream, given[-1])
        expected.append(given[-1][-1].words.copy())
    for schedule in every_schedule(8, coarse=True):
        booted = machine(module("sixteen_cores"), schedule)
        for (stream, _), buffers, want in zip(launches, given, expected, strict=True):
            out = unsynced(want.nbytes)
            booted.launch(stream, [*buffers[:-1], out])
            assert_equal_bits(out.words, want)


@pytest.mark.parametrize("name", ["gemm_one_core", "transform"])
def test_both_levels_agree_on_golden_streams(name: str) -> None:
    """The same bytes of the stream drive both."""
    stream = decode(golden.stream(name))
    sizes = stream.argument_bytes()
    design, lowered = golden.machine(golden.design(name)), machine(module(name))
    for seed in range(3):
        data = random_int8(seed, sizes[0])
        outs = [unsynced(sizes[1]), unsynced(sizes[1])]
        design.launch(stream, [synced(data), outs[0]])
        lowered.launch(stream, [synced(data), outs[1]])
        assert_equal_bits(outs[0].words, outs[1].words)
        assert design.counters.kernel_calls == lowered.counters.kernel_calls
        assert design.counters.dma_bytes == lowered.counters.dma_bytes


def test_counters_are_what_the_module_asks() -> None:
    booted = machine(module("gemm_one_core"))
    boot = booted.counters  # C acquired and zeroed; each input channel has taken an empty buffer
    assert boot == LoweredCounters(0, 0, 0, kernel_calls=1, transfers=0, lock_operations=3)
    gemm(booted, (2, 3, 4), seed=2)
    products, tiles = 2 * 3 * 4, 2 * 4
    found = booted.counters
    assert (found.launches, found.dma_tasks) == (1, 2 + 4)
    assert found.dma_bytes == 2 * products * 256 + tiles * 1024
    assert found.kernel_calls == 1 + products + tiles
    assert found.transfers == 2 * products + tiles
    # Each element of A, B and C is taken and given once at both ends.
    assert found.lock_operations == 3 + 4 * (2 * products + tiles)


def test_the_race_is_caught_under_each_of_100_schedules() -> None:
    for schedule in every_schedule(MANY):
        booted = machine(module("gemm_one_core_race"), schedule)
        with pytest.raises(RaceError) as caught:
            gemm(booted, (2, 3, 2), seed=1)
        message = str(caught.value)
        line = line_of(text("gemm_one_core_race"), "func.call @mm")
        assert message.startswith(
            f"launch 0, after 2 kernel calls: core (0, 2) at gemm_one_core_race.mlir:{line} passes "
            "@mm the buffer @a_cons_buff_1, which it does not hold: @a_cons_prod_lock_0 and "
            "@a_cons_cons_lock_0 hand it over"
        )


def without_holding(booted: LoweredMachine) -> LoweredMachine:
    """Nobody looks at what cores hold any more."""
    for core in booted.cores:
        core._guarded.clear()
        core._returning.clear()
    return booted


def without_order(booted: LoweredMachine) -> LoweredMachine:
    """Nobody looks at the order of accesses any more either."""
    for memory in booted._memories.values():
        memory.history.read = lambda clock, where: (0, -1, -1)  # type: ignore[method-assign]
        memory.history.write = lambda clock, where, done: (0, -1, -1)  # type: ignore[method-assign]
    return without_holding(booted)


def test_order_alone_catches_the_race_under_every_schedule() -> None:
    for schedule in every_schedule(40):
        booted = without_holding(machine(module("gemm_one_core_race"), schedule))
        with pytest.raises(RaceError) as caught:
            gemm(booted, (2, 3, 2), seed=1)
        assert "@a_cons_buff_" in str(caught.value)


def test_values_alone_prove_nothing_of_the_race() -> None:
    """Round robin computes it right, as the DMA stays ahead; then only the locks tell."""
    booted = without_order(machine(module("gemm_one_core_race")))
    with pytest.raises(RestStateError) as caught:
        gemm(booted, (2, 3, 2), seed=1)
    assert "lock @a_cons_cons_lock_0 of core (0, 2) is at 7; at rest at 0" in str(caught.value)


def short_of(**changes: int) -> Sequence:
    """A launch of one C tile of two steps, with other amounts."""
    amounts = {"k": 2, "a": 2, "b": 2, "c": 1} | changes
    int8, int32 = np.dtype(np.int8), np.dtype(np.int32)
    steps = (
        WriteParameter("rtp", 0, amounts["k"]),
        Transfer("c_shim_alloc", 1, descriptor=0, token=True, **linear(0, amounts["c"] * 256)),
        Transfer("a_shim_alloc", 0, descriptor=1, **linear(0, amounts["a"] * 256)),
        Transfer("b_shim_alloc", 0, descriptor=2, **linear(0, amounts["b"] * 256)),
        Wait("c_shim_alloc"),
    )
    return Sequence("s", (Argument("x", 4096, int8), Argument("y", 4096, int32)), steps)


def run(booted: LoweredMachine, steps: Sequence) -> None:
    stream = decode(assemble(steps, booted.module.overlay))
    booted.launch(stream, [synced(random_int8(1, 4096)), unsynced(4 * 4096)])


def test_the_amounts_that_fit_are_right() -> None:
    run(machine(module("gemm_one_core")), short_of())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"k": 1}, "core (0, 2) MM2S 0 is 16 words into a transfer; at rest waiting for 1 of lock"),
        ({"a": 3}, "lock @a_cons_prod_lock_0 of core (0, 2) is at 0; at rest at 1"),
        ({"b": 4}, "lock @b_cons_cons_lock_0 of core (0, 2) is at 2; at rest at 0"),
        (
            {"a": 3, "b": 3},  # the same lock as at rest, but in the middle of a product
            "core (0, 2) is waiting for 1 of lock @a_cons_cons_lock_0 after release "
            "a_cons_prod_lock_0 1, release b_cons_prod_lock_0 1; at rest waiting for 1 of lock "
            "@a_cons_cons_lock_0 after acquire c_prod_lock_0 1, call zero",
        ),
        ({"a": 12}, "shim (0, 0) MM2S 0 (@a_shim_alloc) is with 1 tasks, 0 tokens"),
        (
            {"k": 4, "a": 5, "b": 5},
            "core (0, 2) is waiting for 1 of lock @a_cons_cons_lock_0 after",
        ),
    ],
)
def test_what_is_left_over_is_found_at_once(changes: dict[str, int], line: str) -> None:
    """The token comes, but the next launch would be wrong."""
    with pytest.raises(RestStateError) as caught:
        run(machine(module("gemm_one_core")), short_of(**changes))
    assert line in str(caught.value)


def test_a_parameter_larger_than_the_supply_is_a_deadlock_naming_who_waits_where() -> None:
    with pytest.raises(Deadlock) as caught:
        run(machine(module("gemm_one_core")), short_of(k=3))
    lines = str(caught.value).splitlines()
    assert lines[0] == "launch 0: nothing can move:"
    assert lines[1] == (
        "  the runtime sequence waits for a token of shim (0, 0) S2MM 0 (@c_shim_alloc)"
    )
    assert any(
        line == "  core (0, 2) waits for at least 1 of lock @a_cons_cons_lock_0 of core (0, 2) at "
        "gemm_one_core.mlir:117"
        for line in lines
    )


def test_a_launch_that_failed_leaves_a_machine_that_is_lost_but_the_module_whole() -> None:
    booted = machine(module("gemm_one_core"))
    with pytest.raises(Deadlock):
        run(booted, short_of(k=3))
    gemm(machine(module("gemm_one_core")), (2, 3, 2), seed=1)


def words_at(*operations: WriteWord) -> Stream:
    return Stream(NPU1, 1, operations)


def test_a_parameter_lands_where_the_stream_says() -> None:
    booted = machine(module("gemm_one_core"))
    booted.launch(words_at(WriteWord(Tile(0, 2), 1024 + 8, 77)), [])
    assert booted.memory("rtp")[2] == 77
    assert (booted.memory("rtp")[:2].view(np.uint8) == 0xA5).all()


def test_a_parameter_where_no_buffer_is_is_refused() -> None:
    booted = machine(module("gemm_one_core"))
    with pytest.raises(EmulationError, match=r"writes core \(0, 2\) at 0x1100, where no buffer is"):
        booted.launch(words_at(WriteWord(Tile(0, 2), 0x1100, 77)), [])


def test_a_parameter_that_lands_on_an_element_is_a_race() -> None:
    booted = machine(module("gemm_one_core"))
    with pytest.raises(RaceError) as caught:
        booted.launch(words_at(WriteWord(Tile(0, 2), 3648, 77)), [])
    assert str(caught.value).startswith(
        "launch 0, after 1 kernel calls: the runtime sequence writes byte 0 of @a_cons_buff_0 in "
        "core (0, 2), which core (0, 2) S2MM 0 writes, and nothing orders the one after the other"
    )


def test_a_stream_of_another_partition_is_refused() -> None:
    booted = machine(module("gemm_one_core"))
    with pytest.raises(EmulationError, match="the stream is for 4 columns of npu1, the overlay fo"):
        booted.launch(decode(golden.stream("sixteen_cores")), [])


def test_a_channel_without_a_flow_cannot_be_started() -> None:
    source = changed(
        text("gemm_one_core"),
        ("    aie.flow(%shim_noc_tile_0_0, DMA : 1, %tile_0_2, DMA : 1)\n", ""),
        ("    aie.shim_dma_allocation @b_shim_alloc(%shim_noc_tile_0_0, MM2S, 1)\n", ""),
    )
    buffers = [synced(random_int8(1, 3072)), unsynced(4096)]
    with pytest.raises(EmulationError, match=r"shim \(0, 0\) MM2S 1, which no flow of the design"):
        machine(source).launch(decode(golden.stream("gemm_one_core")), buffers)


def test_an_unrolled_core_rests_at_any_of_its_copies() -> None:
    """transform's loop is unrolled by two: after an odd number of elements it waits elsewhere."""
    booted = machine(module("transform"))
    int8 = np.dtype(np.int8)
    for elements in (1, 2, 3, 1):
        steps = (
            Transfer("out_shim_alloc", 1, descriptor=0, token=True, **linear(0, elements * 1024)),
            Transfer("in_l3l2_shim_alloc", 0, descriptor=1, **linear(0, elements * 1024)),
            Wait("out_shim_alloc"),
        )
        sizes = Argument("a", 4096, int8), Argument("b", 4096, int8)
        stream = decode(assemble(Sequence("s", sizes, steps), booted.module.overlay))
        given, out = random_int8(elements, 4096), unsynced(4096)
        booted.launch(stream, [synced(given), out])
        tiles = given[: elements * 1024].reshape(elements, 8, 4, 4, 8).transpose(0, 1, 3, 2, 4)
        assert_equal_bits(out.words.view(np.int8)[: elements * 1024], tiles.reshape(-1))


@pytest.mark.parametrize("times", [1, 3])
def test_what_a_core_does_once_is_no_part_of_its_rest(times: int) -> None:
    """Before its loop it clears a buffer of its own, in a loop of its own the second time."""
    source = after_line(
        text("gemm_one_core"), "%_anonymous0 = aie.buffer", "    %own = aie.buffer(%tile_0_2) "
        '{address = 8192 : i32, sym_name = "own"} : memref<256xi32>\n',
    )  # fmt: skip
    before = (
        f"      %times = arith.constant {times} : index\n      cf.br ^before(%c0 : index)\n"
        "    ^before(%n: index):\n      func.call @zero(%own) : (memref<256xi32>) -> ()\n"
        "      %n1 = arith.addi %n, %c1 : index\n"
        "      %again = arith.cmpi slt, %n1, %times : index\n"
        "      cf.cond_br %again, ^before(%n1 : index), ^bb1(%c0 : index)\n"
    )
    if times == 1:
        before = (
            "      func.call @zero(%own) : (memref<256xi32>) -> ()\n      cf.br ^bb1(%c0 : index)\n"
        )
    booted = machine(source.replace("      cf.br ^bb1(%c0 : index)\n", before, 1))
    for shape in ((2, 2, 3), (1, 1, 2)):
        gemm(booted, shape, seed=7)


def test_a_full_lock_is_an_error() -> None:
    """The race form piles up credit until a lock can hold no more."""
    booted = without_order(machine(module("gemm_one_core_race")))
    with pytest.raises(LockError, match=r"of lock @a_cons_.*_lock_0 .* stands at 63; a lock holds"):
        gemm(booted, (8, 8, 3), seed=1)


def test_symbols_are_the_models_of_both_levels() -> None:
    assert {name: symbol.model for name, symbol in SYMBOLS.items()} == golden.MODELS
    launch(golden.machine(golden.design("gemm_one_core")), gemm_sequence(1, 1, 1),
           [synced(random_int8(3, 512)), unsynced(1024)])  # fmt: skip
