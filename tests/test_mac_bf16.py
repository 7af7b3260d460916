"""The emulated NPU's models of the bf16 symbols follow the rule of the hardware bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from bf16_rule import (
    CORNERS,
    MIXES,
    Corner,
    bf16,
    fused_step,
    hardware_step,
    mixed,
    mixed_product,
    rounded_once_step,
)
from comparing import assert_equal_bits, assert_equal_floats
from numpy.typing import NDArray
from tiles import filled, places, resized

from npu_matmul.emulator.symbols import NoModel, models
from npu_matmul.kernel import Kernel, Mmul, Types, load_kernel

SHIPPED = load_kernel("matmul_64x512", "bf16")
SHAPES = [(4, 8, 4), (16, 24, 16), (8, 16, 40)]


def modelled(kernel: Kernel, a: Any, b: Any, c: Any, accumulate: bool) -> NDArray[np.float32]:
    """c + a @ b, or a @ b, in plain rows, by the kernel's model."""
    where = places(kernel)
    flat = filled(kernel, 0, 0, 0)
    for tile, place, rows in zip(flat, where, (a, b, c), strict=True):
        tile[place] = rows
    symbol = kernel.symbols.next if accumulate else kernel.symbols.first
    models(kernel)[symbol](*flat)
    assert_equal_floats(flat[0][where[0]].astype(np.float32), a.astype(np.float32))
    assert_equal_floats(flat[1][where[1]].astype(np.float32), b.astype(np.float32))
    result: NDArray[np.float32] = flat[2][where[2]]
    return result


@pytest.mark.parametrize("corner", CORNERS.values(), ids=CORNERS)
def test_a_known_step_in_any_lane_and_order(corner: Corner) -> None:
    """The lane is one of 16, the others hold zeros; eight terms may come in any order."""
    kernel = resized(SHIPPED, 4, 8, 4)
    for turn in range(8):
        i, j = divmod(2 * turn, 4)
        a, b, c = bf16(np.zeros((4, 8))), bf16(np.zeros((8, 4))), np.zeros((4, 4), np.float32)
        a[i], b[:, j] = np.roll(bf16(corner.a), turn), np.roll(bf16(corner.b), turn)
        c[i, j] = corner.before
        lanes = modelled(kernel, a, b, c, accumulate=True)
        assert_equal_floats(lanes[i, j], np.float32(corner.after))
        if np.isfinite(b.astype(np.float32)).all() and np.isfinite(a.astype(np.float32)).all():
            lanes[i, j] = 0
            assert_equal_bits(lanes, np.zeros_like(lanes))


@pytest.mark.parametrize("corner", CORNERS.values(), ids=CORNERS)
def test_the_rule_gives_the_known_step(corner: Corner) -> None:
    got = hardware_step(corner.before, corner.a, corner.b)
    assert_equal_floats(np.float32(got), np.float32(corner.after))


@pytest.mark.parametrize("accumulate", [False, True], ids=["first", "next"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_model_follows_the_rule(mix: str, shape: tuple[int, int, int], accumulate: bool) -> None:
    got = modelled(resized(SHIPPED, *shape), *mixed(mix, *shape), accumulate)
    assert_equal_floats(got, mixed_product(mix, *shape, accumulate))


@pytest.mark.parametrize("other", [rounded_once_step, fused_step])
def test_the_operands_tell_the_rule_from_simpler_ones(other: Any) -> None:
    """Neither exact sums rounded once nor chained fused multiply-adds would pass the test above."""
    differing = []
    for mix in MIXES:
        got = mixed_product(mix, 16, 24, 16, True)
        simpler = mixed_product(mix, 16, 24, 16, True, other)
        differing.append(np.count_nonzero((got != simpler) & ~np.isnan(got)))
    assert sum(n > 0 for n in differing) >= len(MIXES) - 1, differing
    assert sum(differing) > 300


def test_the_operands_reach_what_their_names_say() -> None:
    results = {mix: mixed_product(mix, 16, 24, 16, True) for mix in MIXES}
    for lanes in (
        np.isinf(results["about to overflow"]),
        np.isnan(results["infinities and NaN"]),
        results["subnormal sums and results"] == 0,
        results["cancelling"] == 0,
        results["signed zeros"] == 0,
    ):
        assert 0.05 < lanes.mean() < 0.9


def test_sums_pass_from_call_to_call() -> None:
    """Two calls of K = 16 are one call of K = 32: nothing but fp32 passes between steps."""
    whole, half = resized(SHIPPED, 16, 32, 16), resized(SHIPPED, 16, 16, 16)
    a, b, c = mixed("normals", 16, 32, 16)
    between = modelled(half, a[:, :16], b[:16], c, accumulate=True)
    assert_equal_bits(
        modelled(half, a[:, 16:], b[16:], between, accumulate=True),
        modelled(whole, a, b, c, accumulate=True),
    )


def test_first_ignores_what_c_held() -> None:
    shape = (16, 8, 16)
    a, b, _ = mixed("normals", *shape)
    garbage = np.full((16, 16), np.nan, np.float32)
    got = modelled(resized(SHIPPED, *shape), a, b, garbage, accumulate=False)
    assert_equal_bits(got, mixed_product("normals", *shape, False))


# ---- How far from the true product ---------------------------------------------------------------


def chained(a: Any, b: Any) -> NDArray[np.float32]:
    """a @ b over any K by the shipped tile: one first and then next."""
    depth = SHIPPED.tile.k
    sums = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for start in range(0, a.shape[1], depth):
        part = slice(start, start + depth)
        sums = modelled(SHIPPED, a[:, part], b[part], sums, accumulate=start > 0)
    return sums


@pytest.mark.parametrize("depth", [32, 512, 1536])
def test_float32_sums_are_near_the_float64_product(depth: int) -> None:
    """Within 2e-6 * sqrt(K), relative, in the Frobenius norm: a single sum may cancel to next to
    nothing and then has no relative error to speak of, but the K / 8 roundings of all sums are
    independent and so grow like the sums themselves, with sqrt(K)."""
    random = np.random.default_rng(depth)
    a = bf16(random.normal(0, 1, (SHIPPED.tile.m, depth)))
    b = bf16(random.normal(0, 1, (depth, SHIPPED.tile.n)))
    true = a.astype(np.float64) @ b.astype(np.float64)
    error = np.linalg.norm(chained(a, b) - true) / np.linalg.norm(true)
    assert 0 < error < 2e-6 * depth**0.5


# ---- Which kernels have a model -----------------------------------------------------------------


def test_element_types_without_a_model_are_refused() -> None:
    kernel = dataclasses.replace(SHIPPED, types=Types("bfloat16", "bfloat16", "bfloat16"))
    with pytest.raises(NoModel) as caught:
        models(kernel)
    assert str(caught.value) == (
        "kernel 'matmul_64x512', variant 'bf16': products of bfloat16 with bfloat16 into bfloat16 "
        "have no model in the emulated NPU; there is one for: int8 with int8 into int32; "
        "bfloat16 with bfloat16 into float32"
    )


def test_steps_of_another_length_are_refused() -> None:
    kernel = dataclasses.replace(SHIPPED, mmul=Mmul(8, 1, 8))
    with pytest.raises(NoModel, match=r"variant 'bf16': mmul s = 1.*s = 8"):
        models(kernel)
