"""Candidates are all that the design rules pass, and are ranked by what the model says of each."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from npu_matmul.explore import candidates as explored
from npu_matmul.explore import fronts, model, rank
from npu_matmul.explore.candidates import (
    OUTPUTS,
    Candidates,
    core_bytes,
    core_grids,
    enumerate_candidates,
    fits,
    kernels_array,
    template,
)
from npu_matmul.explore.model import Products
from npu_matmul.kernel import Blocking, CoreGrid, Kernel, load_kernel
from npu_matmul.kernel_rules import check_kernel
from npu_matmul.memory_map import memory_map
from npu_matmul.performance.array import launch_time
from npu_matmul.performance.product import Npu, predict
from npu_matmul.target import NPU1, NPU2, TARGETS, Target
from npu_matmul.tiler import TileGrid

ONE_CORE = CoreGrid(1, 1)
SMALL, INT8 = load_kernel("matmul_16x16"), load_kernel("matmul_64x512", "int8")
BF16 = load_kernel("matmul_64x512", "bf16")
FIELDS = ("m", "k", "n", "a_depth", "b_depth", "c_depth", "output")


@pytest.mark.parametrize("module", [explored, fronts, model, rank])
def test_examples_in_docstrings_hold(module: Any) -> None:
    assert not doctest.testmod(module).failed


def one(dtype: str, *numbers: int) -> Candidates:
    """A single candidate, by the order of :data:`FIELDS`."""
    return Candidates(dtype, *(np.array([number]) for number in numbers))


def as_candidate(kernel: Kernel, dtype: str) -> tuple[int, ...]:
    tile, depths = kernel.tile, kernel.depths
    output = OUTPUTS[dtype].index(kernel.types.c)
    return (tile.m, tile.k, tile.n, depths.a, depths.b, depths.c, output)


def rows_of(found: Candidates) -> set[tuple[int, ...]]:
    return set(zip(*(getattr(found, name).tolist() for name in FIELDS), strict=True))


def at_the_limit(seed: int, dtype: str, target: Target) -> tuple[int, ...]:
    """A random tile whose k is the largest that fits a core."""
    random = np.random.default_rng(seed)
    kernel = template(dtype)
    steps = kernel.mmul.r * kernel.blocking.m, kernel.mmul.t * kernel.blocking.n
    while True:
        m, n = (step * int(random.integers(1, 12)) for step in steps)
        depths = [int(number) for number in random.integers(1, 3, 3)]
        output = int(random.integers(len(OUTPUTS[dtype])))
        k = 0
        while fits(one(dtype, m, k + 8, n, *depths, output).on(ONE_CORE), target)[0]:
            k += 8
        if k:
            return (m, k, n, *depths, output)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.parametrize("seed", range(4))
def test_what_just_fits_obeys_the_design_rules_and_the_next_does_not(
    dtype: str, target: str, seed: int
) -> None:
    fitting = at_the_limit(seed, dtype, TARGETS[target])
    wide = (fitting[0], fitting[1] + 8, *fitting[2:])
    grid = CoreGrid(4, 4) if seed == 0 else ONE_CORE
    kernels = [one(dtype, *row).kernel(0, grid, TARGETS[target]) for row in (fitting, wide)]
    checked = [check_kernel(kernel, target) for kernel in kernels]
    assert checked[0].violations == ()
    assert {violation.rule for violation in checked[1].violations} == {"memory"}
    for kernel, found in zip(kernels, checked, strict=True):
        maps = memory_map(found.overlay)
        ends = [r.end for tile, ranges in maps.items() if tile.kind == "core" for r in ranges]
        assert max(ends) == core_bytes(kernels_array(kernel))


def test_a_tile_that_would_misalign_the_next_buffer_is_none() -> None:
    """An A of 32 B is a vector on npu1 and half of one on npu2."""
    fields = 4, 8, 64, 1, 1, 1, 0
    for target, aligned in ((NPU1, True), (NPU2, False)):
        assert fits(one("int8", *fields).on(ONE_CORE), target)[0] == aligned
        kernel = one("int8", *fields).kernel(0, ONE_CORE, target)
        depths = dataclasses.replace(kernel.depths, a=2)
        any_blocks = dataclasses.replace(kernel, depths=depths, blocking=Blocking(1, 1))
        violations = check_kernel(any_blocks, target.name)
        assert (violations.violations == ()) == aligned


def test_memtiles_bind_only_arrays_that_no_target_has() -> None:
    """Two elements of A, B and C of four cores; a target of nine rows would not have room."""
    fields = 96, 8, 144, 1, 1, 1, 0
    nine = dataclasses.replace(NPU1, rows=11)
    assert fits(one("int8", *fields).on(CoreGrid(4, 4)), NPU1)[0]
    assert not fits(one("int8", *fields).on(CoreGrid(9, 9)), nine)[0]


@pytest.mark.parametrize("dtype", OUTPUTS)
def test_every_tile_that_fits_is_a_candidate(dtype: str) -> None:
    found = enumerate_candidates(dtype, NPU1)
    known = rows_of(found)
    assert len(known) == len(found) > 20_000
    random = np.random.default_rng(1)
    mmul, blocking = template(dtype).mmul, template(dtype).blocking
    steps = mmul.r * blocking.m, mmul.t * blocking.n
    inside = 0
    for _ in range(3000):
        m, n = (s * int(random.integers(1, 14)) for s in steps)
        k = mmul.s * int(random.integers(1, 40))
        row = (m, k, n, *random.integers(1, 3, 3).tolist(), int(random.integers(2)))
        fitting = bool(fits(one(dtype, *row).on(CoreGrid(4, 4)), NPU1)[0])
        inside += fitting
        assert (row in known) == fitting
    assert 300 < inside < 2700
    sizes = core_bytes(found.on(ONE_CORE))
    assert (np.diff(sizes) >= 0).all() and sizes[-1] <= 65_536


def test_shipped_kernels_are_candidates() -> None:
    for kernel, dtype in ((SMALL, "int8"), (INT8, "int8"), (BF16, "bf16")):
        assert as_candidate(kernel, dtype) in rows_of(enumerate_candidates(dtype, NPU1))
        assert kernel.grid in core_grids(NPU1)


def test_a_candidate_is_its_manifest() -> None:
    row = as_candidate(BF16, "bf16")
    kernel = one("bf16", *row).kernel(0, BF16.grid, NPU1)
    assert kernel == dataclasses.replace(BF16, targets=("npu1",))
    assert kernel.name == "matmul_64x512"


def test_a_narrow_c_has_sums_beside_it_and_the_stack_holds_them() -> None:
    kernel = one("int8", 64, 64, 128, 2, 2, 1, 1).kernel(0, CoreGrid(4, 4), NPU1)
    assert (kernel.types.c, kernel.stack_bytes) == ("int16", 2048 + 64 * 128 * 4)
    assert kernels_array(kernel).sums_apart and not kernels_array(INT8).sums_apart
    assert core_bytes(kernels_array(kernel)) == 2048 + 64 + 12 + 32_768 + 16_384 + 24_576


@pytest.mark.parametrize("dtype", OUTPUTS)
def test_blocking_and_accumulators_are_the_core_functions(dtype: str) -> None:
    kernel = template(dtype)
    source = kernel.source.read_text(encoding="utf-8")
    found = [int(re.search(rf"blocking_{x} = (\d)", source)[1]) for x in "mn"]  # type: ignore[index]
    assert tuple(found) == (kernel.blocking.m, kernel.blocking.n)
    assert kernel.types.c == OUTPUTS[dtype][0]
    assert kernel.c_dtype.itemsize == explored.SUM_BYTES


def test_core_grids_are_what_a_manifest_may_say() -> None:
    grids = core_grids(NPU1)
    assert len(grids) == 10 and CoreGrid(4, 4) in grids and CoreGrid(1, 4) in grids
    assert all(grid.rows <= grid.columns for grid in grids)
    assert max(core_grids(NPU2), key=lambda grid: grid.columns) == CoreGrid(1, 8)


# the model


SHAPES = [(1, 1, 1), (1500, 512, 2048), (3000, 240, 512), (130, 5120, 70), (9000, 300, 16_000)]
MANY_LAUNCHES = (16_384, 2000, 16_384)


def products(*shapes: tuple[int, int, int], counts: tuple[int, ...] = ()) -> Products:
    return Products("test", shapes, counts or (1,) * len(shapes), "")


def modelled_kernels() -> dict[str, tuple[Kernel, str]]:
    """Those shipped, and candidates of every kind."""
    kernels = {"16x16": (SMALL, "int8"), "int8": (INT8, "int8"), "bf16": (BF16, "bf16")}
    grids = [CoreGrid(1, 1), CoreGrid(2, 3), CoreGrid(4, 4), CoreGrid(3, 7)]
    for seed, (dtype, output) in enumerate((d, o) for d in OUTPUTS for o in range(len(OUTPUTS[d]))):
        fields = at_the_limit(seed, dtype, NPU1)
        row = one(dtype, *fields[:-1], output)
        kernels[f"candidate {seed}"] = row.kernel(0, grids[seed % 4], NPU2), dtype
    return kernels


KERNELS = modelled_kernels()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_takes_what_predict_says(name: str, target: str, shape: Any) -> None:
    kernel, dtype = KERNELS[name]
    npu = Npu.named(target, 1.3e9)
    predicted = predict(TileGrid(kernel, *shape), npu=npu, resident=True)
    found = model.model(kernels_array(kernel), products(shape), npu, dtype)
    assert found.sync_s == pytest.approx(predicted.sync_s, rel=1e-12)
    assert found.launches.launch_s == pytest.approx(predicted.array.launch_s, rel=1e-12)
    if not kernels_array(kernel).sums_apart:  # predict knows no such kernels
        assert float(found.total_s) == pytest.approx(predicted.device_s, rel=1e-12)
        assert found.launches.limit == predicted.array.limit
        for part, seconds in vars(predicted.array).items():
            assert float(getattr(found.launches, part)) == pytest.approx(seconds, rel=1e-12), part
    work = sum(
        count
        * launch_time(
            kernels_array(kernel), work, npu.figures.rates(dtype), npu.figures, npu.clock_hz
        ).busy_s
        for work, count in predicted.work
    )
    assert float(found.launches.busy_s) == pytest.approx(work, rel=1e-12)
    padded = predicted.kernel_calls * kernel.tile.m * kernel.tile.k * kernel.tile.n
    assert int(found.multiplications) == padded


def launches_agree(kernel: Kernel, dtype: str, shape: tuple[int, int, int]) -> int:
    """Launches are cut and issued as ``schedule`` does it; returns how many there are."""
    predicted = predict(TileGrid(kernel, *shape), resident=True)
    found = model.model(kernels_array(kernel), products(shape), Npu.named(), dtype)
    for part in ("launch_s", "issue_s", "input_s"):
        mine, there = (float(getattr(x, part)) for x in (found.launches, predicted.array))
        assert mine == pytest.approx(there, rel=1e-12), part
    return predicted.counts.launches


@pytest.mark.parametrize("name", ["16x16", "candidate 0", "candidate 3"])
def test_limits_cut_a_product_as_they_do_there(name: str) -> None:
    assert launches_agree(*KERNELS[name], MANY_LAUNCHES) > 1


def test_limits_cut_the_inner_loop_where_even_one_of_the_outer_is_too_long() -> None:
    kernel = one("int8", 16, 8, 16, 2, 2, 2, 0).kernel(0, ONE_CORE, NPU1)
    assert launches_agree(kernel, "int8", (16_384, 16_384, 16_384)) > 16_384 // 16


def test_loops_of_equal_length_are_ordered_as_there() -> None:
    kernel = one("int8", 16, 8, 16, 2, 2, 2, 0).kernel(0, CoreGrid(1, 3), NPU1)
    assert launches_agree(kernel, "int8", (20 * 16, 64, 20 * 48)) == 1


def test_all_at_once_is_each_alone() -> None:
    found = enumerate_candidates("int8", NPU1)
    npu, shapes = Npu.named(), products(SHAPES[1], MANY_LAUNCHES, counts=(6, 1))
    grid = CoreGrid(1, 2)
    together = model.model(found.on(grid), shapes, npu, "int8")
    for place in np.random.default_rng(3).choice(len(found), 40, False):
        array = kernels_array(found.kernel(int(place), grid, NPU1))
        alone = model.model(array, shapes, npu, "int8")
        assert float(alone.total_s) == pytest.approx(together.total_s[place], rel=1e-12)
        assert int(alone.multiplications) == together.multiplications[place]


def test_counts_weigh_the_products() -> None:
    array, npu = kernels_array(INT8), Npu.named()
    both = model.model(array, products(SHAPES[1], SHAPES[2], counts=(6, 2)), npu, "int8")
    parts = [model.model(array, products(shape), npu, "int8") for shape in SHAPES[1:3]]
    for name in ("total_s", "sync_s", "multiplications"):
        first, second = (float(getattr(part, name)) for part in parts)
        assert float(getattr(both, name)) == pytest.approx(6 * first + 2 * second)
    assert products(SHAPES[1], counts=(6,)).multiplications == 6 * math.prod(SHAPES[1])


# ranks and fronts


@pytest.fixture(scope="module")
def ranking() -> rank.Ranking:
    return rank.rank("bf16", products((1500, 512, 512), (1500, 512, 2048)), Npu.named())


def test_ranks_count_what_is_faster(ranking: rank.Ranking) -> None:
    times = np.sort(ranking.seconds, axis=None)
    assert ranking.seconds.shape == (10, len(ranking.candidates))
    assert ranking.place_of(times[0]) == 1
    assert ranking.place_of(times[-1]) <= times.size
    middle = times[777]
    assert ranking.place_of(middle) == 1 + np.count_nonzero(times < middle * (1 - 1e-9))


def brute_front(times: list[float], costs: list[float]) -> list[int]:
    """Those that nothing beats, the fastest first; of equals the first."""
    kept = []
    for i, (time, cost) in enumerate(zip(times, costs, strict=True)):
        beaten = any(
            (t <= time and c <= cost) and ((t, c) != (time, cost) or j < i)
            for j, (t, c) in enumerate(zip(times, costs, strict=True))
        )
        kept += [] if beaten else [i]
    return sorted(kept, key=lambda i: times[i])


@pytest.mark.parametrize("seed", range(5))
def test_a_front_is_what_nothing_beats(seed: int) -> None:
    random = np.random.default_rng(seed)
    times, costs = random.integers(1, 30, (2, 80)).astype(float)
    assert fronts.front(times, costs) == brute_front(times.tolist(), costs.tolist())


def test_fronts_of_memory_are_of_all_candidates(ranking: rank.Ranking) -> None:
    found = rank.memory_fronts(ranking)
    assert list(found) == list(OUTPUTS["bf16"])
    for output, (name, kernels) in enumerate(found.items()):
        places, times = ranking.least(output)
        arrays = [kernels_array(kernel) for kernel in kernels]
        sizes = [core_bytes(array) for array in arrays]
        own = [float(model.model(a, ranking.products, ranking.npu, "bf16").total_s) for a in arrays]
        assert own[0] == pytest.approx(times.min(), rel=1e-12)
        for kernel, size, seconds in zip(kernels, sizes, own, strict=True):
            assert kernel.types.c == name
            smaller = ranking.core_bytes[places] <= size
            assert seconds == pytest.approx(times[smaller].min(), rel=1e-12)
        assert len(kernels) > 1
        assert all(small <= rank.SHARE * large for large, small in itertools.pairwise(sizes))
        assert own[-1] <= rank.SLOWEST * own[0]


def test_the_front_of_columns_goes_down_to_one(ranking: rank.Ranking) -> None:
    kernels = rank.column_front(ranking)
    assert [kernel.grid.columns for kernel in kernels] == [4, 2, 1]
    assert {kernel.types.c for kernel in kernels} == {"float32"}
    sums = ranking.seconds[:, ranking.candidates.output == 0]
    for kernel in kernels:
        array = kernels_array(kernel)
        own = float(model.model(array, ranking.products, ranking.npu, "bf16").total_s)
        narrow = [grid.columns <= kernel.grid.columns for grid in ranking.grids]
        assert own == pytest.approx(sums[narrow].min(), rel=1e-12)


def test_a_second_buffer_is_never_modelled_to_cost_time(ranking: rank.Ranking) -> None:
    found = ranking.candidates
    rows = list(zip(*(getattr(found, name).tolist() for name in FIELDS), strict=True))
    places = {row: place for place, row in enumerate(rows)}
    times, compared = ranking.seconds[-1], 0
    for row, depth in itertools.product(rows[::40], (3, 4, 5)):
        deeper = places.get((*row[:depth], 2, *row[depth + 1 :]))
        if row[depth] == 1 and deeper is not None:
            compared += 1
            assert times[deeper] <= times[places[row]] * (1 + 1e-12)
    assert compared > 100
