"""Modelled times keep the order that the machine's elements, tasks and tokens dictate."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from comparing import random_int8
from golden import synced, unsynced
from numpy.typing import NDArray

from npu_matmul.design import design_text
from npu_matmul.emulator.machine import Machine
from npu_matmul.emulator.pace import Pace, modelled_pace
from npu_matmul.emulator.shim import DeviceMemory
from npu_matmul.emulator.symbols import models
from npu_matmul.emulator.timed import TimedMachine
from npu_matmul.instructions import decode
from npu_matmul.kernel import Kernel, TileShape, load_kernel
from npu_matmul.launch import LaunchShape, argument_bytes
from npu_matmul.lowered.schedules import schedules
from npu_matmul.mlir.elaborate import overlay_of_text
from npu_matmul.overlay import Overlay
from npu_matmul.performance.array import Array, launch_time, launch_work
from npu_matmul.performance.figures import NPU1_FIGURES
from npu_matmul.schedule import cover
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid
from npu_matmul.timeline.strands import ArrayLaunch

ROUND = Pace(
    call_cycles={"matmul_first_i8_i32": 100, "matmul_i8_i32": 50},
    channel_bytes=4,
    array_bytes=4,  # 2 for A and 2 for B, whose tiles have as many bytes; 4 for C
    stream_bytes=4,
    task_cycles=10,
    clock_hz=1e9,
    launch_s=1e-6,
    queued_launch_s=1e-7,
    switch_s=1e-3,
)
SIZES = {"matmul_16x16": (16, 48, 16), "matmul_64x512": (256, 64, 512)}
END = 2
Spans = list[tuple[str, float, float]]


def overlay(kernel: Kernel) -> Overlay:
    return overlay_of_text(design_text(kernel), f"{kernel.name}.mlir")


def timed(kernel: Kernel, pace: Pace | None = None) -> TimedMachine:
    found = overlay(kernel)
    return TimedMachine(found, models(kernel), pace or modelled_pace(kernel, found))


def memories(kernel: Kernel, shape: LaunchShape) -> list[DeviceMemory]:
    a_bytes, b_bytes, c_bytes = argument_bytes(kernel, shape)
    random = random_int8(7, 1, a_bytes + b_bytes)[0] // 8
    a, b = random[:a_bytes], random[a_bytes:]
    return [synced(a), synced(b), unsynced(c_bytes)]


def launched(
    machine: TimedMachine, kernel: Kernel, shape: LaunchShape
) -> tuple[ArrayLaunch, NDArray[np.uint32]]:
    given = memories(kernel, shape)
    machine.launch(decode(launch_stream(kernel, shape)), given)
    return machine.shown(kernel.name), given[2].words


def spans(launch: ArrayLaunch) -> dict[str, Spans]:
    return {
        track.name: list(zip(track.names, track.starts, track.ends, strict=True))
        for track in launch.tracks
    }


def shape_of(kernel: Kernel, M: int, K: int, N: int) -> LaunchShape:
    (launch,) = cover(TileGrid(kernel, M, K, N))
    return launch.shape


def test_one_tile_by_hand() -> None:
    """Three tasks of 10 cycles; 256 B of A and of B at 2 B a cycle into the memtile and 4 to the
    core, which calls once; 1,024 B of C at 4 to the memtile and 4 out."""
    kernel = load_kernel("matmul_16x16")
    launch, _ = launched(timed(kernel, ROUND), kernel, shape_of(kernel, 16, 16, 16))
    assert spans(launch) == {
        "runtime sequence": [
            ("start task", 0, 10),
            ("start task", 10, 20),
            ("start task", 20, 30),
            ("wait for token", 30, 834),
        ],
        "shim (0, 0) S2MM 0 (@C_L2L3_0)": [("transfer", 10, 834)],
        "shim (0, 0) MM2S 0 (@A_L3L2_0)": [("transfer", 20, 148)],
        "shim (0, 0) MM2S 1 (@B_L3L2_0)": [("transfer", 30, 158)],
        "memtile (0, 1) DMA @A_L2L1_0": [("element", 148, 212)],
        "memtile (0, 1) DMA @B_L2L1_0": [("element", 158, 222)],
        "core (0, 2)": [("matmul_first_i8_i32", 222, 322)],
        "core (0, 2) DMA @C_L1L2_0_0": [("element", 322, 578)],
    }
    assert launch.cycles == 834
    (out,) = [track for track in launch.tracks if "S2MM" in track.name]
    assert (out.details[0]["bytes"], out.details[0]["moving cycles"]) == (1024, 256)


def test_a_transfer_waits_for_room_and_a_call_for_its_inputs_and_its_core() -> None:
    """With slow cores elements fill up all the way to the shim; with fast ones cores wait."""
    kernel = load_kernel("matmul_16x16")
    shape = shape_of(kernel, 32, 48, 32)
    for slow in (1, 1000):
        calls = {symbol: slow * cycles for symbol, cycles in ROUND.call_cycles.items()}
        launch, _ = launched(timed(kernel, replace(ROUND, call_cycles=calls)), kernel, shape)
        found = spans(launch)
        core = found["core (0, 2)"]
        a, b = (found[f"memtile (0, 1) DMA @{x}_L2L1_0"] for x in "AB")
        c = found["core (0, 2) DMA @C_L1L2_0_0"]
        assert len(core) == len(a) == len(b) == 12
        assert len(c) == 4
        free = 0.0
        for call, (_, start, end) in enumerate(core):
            block = call // 3
            c_free = c[block - kernel.depths.c][END] if block >= kernel.depths.c else 0.0
            assert start == max(free, a[call][END], b[call][END], c_free)
            free = end
        for moves, depth in ((a, kernel.depths.a), (b, kernel.depths.b)):
            for (_, start, _), (_, _, released) in zip(moves[depth:], core, strict=False):
                assert start >= released
        for (_, start, _), (_, _, written) in zip(c, core[2::3], strict=True):
            assert start >= written
        busy = sum(end - start for _, start, end in core)
        assert (busy > 0.9 * launch.cycles) == (slow == 1000)


@pytest.mark.parametrize("name", ["matmul_16x16", "matmul_64x512"])
def test_times_do_not_depend_on_the_order_in_which_actors_are_run(name: str) -> None:
    kernel = load_kernel(name, "int8")
    shape = shape_of(kernel, *(2 * size for size in SIZES[name]))
    want, product = launched(timed(kernel), kernel, shape)
    for schedule in schedules(16, seed=3):
        machine = timed(kernel)
        machine.settle = schedule.settle
        got, same = launched(machine, kernel, shape)
        assert spans(got) == spans(want), schedule
        assert (same == product).all()


@pytest.mark.parametrize("name", ["matmul_16x16", "matmul_64x512"])
def test_a_timed_machine_computes_and_counts_what_a_plain_one_does(name: str) -> None:
    kernel = load_kernel(name, "int8")
    shape = shape_of(kernel, *(2 * size for size in SIZES[name]))
    plain, given = Machine(overlay(kernel), models(kernel)), memories(kernel, shape)
    plain.launch(decode(launch_stream(kernel, shape)), given)
    machine = timed(kernel)
    _, got = launched(machine, kernel, shape)
    assert (got == given[2].words).all()
    assert machine.counters == plain.counters


def test_each_launch_starts_at_its_own_cycle_0() -> None:
    kernel = load_kernel("matmul_16x16")
    machine = timed(kernel, ROUND)
    first, second = (launched(machine, kernel, shape_of(kernel, 32, 32, 16))[0] for _ in range(2))
    assert spans(first) == spans(second)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("matmul_16x16", (64, 512, 64)),
        ("matmul_64x512", (512, 512, 512)),
        ("matmul_64x512", (1500, 512, 512)),
        ("matmul_64x512", (1500, 2048, 512)),
        ((16, 128, 128), (128, 1024, 1024)),
        ((16, 64, 128), (128, 1024, 1024)),
        ((128, 64, 16), (1024, 1024, 128)),
        ((32, 64, 128), (256, 1024, 1024)),
    ],
    ids=str,
)
def test_a_launch_takes_about_what_the_formula_says(
    name: str | tuple[int, int, int], problem: tuple[int, int, int]
) -> None:
    """Two ways from the same figures: the formula overlaps what each actor does one by one. Tiles
    that are named by their sizes are bound by their input, one operand's more than the other's.
    """
    kernel = load_kernel(name if isinstance(name, str) else "matmul_64x512", "int8")
    if not isinstance(name, str):
        kernel = replace(kernel, tile=TileShape(*name))
    shape = shape_of(kernel, *problem)
    launch, _ = launched(timed(kernel), kernel, shape)
    rates = NPU1_FIGURES.rates(kernel.types.a)
    clock_hz = NPU1_FIGURES.clock_hz
    work = launch_work(kernel, shape)
    formula = launch_time(Array.of(kernel), work, rates, NPU1_FIGURES, clock_hz)
    assert (formula.busy_s == formula.input_s) == (not isinstance(name, str))
    seconds = launch.cycles / launch.clock_hz
    assert 0.99 < seconds / (formula.total_s - formula.launch_s) < 1.06


def test_tracks_are_of_every_actor_and_nest() -> None:
    kernel = load_kernel("matmul_64x512", "int8")
    launch, _ = launched(timed(kernel), kernel, shape_of(kernel, 256, 128, 1024))
    kinds = defaultdict(list)
    for track in launch.tracks:
        kinds[track.kind].append(track)
        ends = [0.0]
        for start, end in zip(track.starts, track.ends, strict=True):
            assert ends[-1] <= start <= end <= launch.cycles
            ends.append(end)
    counts = {kind: len(tracks) for kind, tracks in kinds.items()}
    assert counts == {
        "sequence": 1,
        "shim MM2S": 8,
        "memtile DMA": 8,
        "core": 16,
        "core DMA": 16,
        "shim S2MM": 4,
    }
