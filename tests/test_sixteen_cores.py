"""matmul_64x512 at the shapes of a Whisper encoder: one launch, exact in int8, bounded in bf16."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8

from npu_matmul import last_call, npu_matmul
from npu_matmul.kernel import load_kernel
from npu_matmul.precision import to_bf16
from npu_matmul.strategies import STRATEGIES, expected
from npu_matmul.tiler import TileGrid

SHAPES = [(1500, 512, 512), (1500, 512, 2048)]


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_int8_is_one_launch_and_equal_bit_for_bit(M: int, K: int, N: int) -> None:
    a, b = random_int8(M, M, K), random_int8(N, K, N)
    got = npu_matmul(a, b, dtype=np.int32, device="emulated")
    report = last_call()
    assert (report.kernel, report.strategy) == ("matmul_64x512", "batched")
    assert (report.launches, report.syncs_to_device, report.syncs_from_device) == (1, 1, 1)
    assert_equal_bits(got, product_int32(a, b))


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_bf16_is_one_launch_and_within_its_bound(M: int, K: int, N: int) -> None:
    random = np.random.default_rng(M + N)
    a, b = random.standard_normal((M, K)), random.standard_normal((K, N))
    got = npu_matmul(a, b, device="emulated")
    report = last_call()
    assert (report.launches, report.syncs_to_device, report.syncs_from_device) == (1, 1, 1)
    want = to_bf16(a).astype(np.float64) @ to_bf16(b).astype(np.float64)
    # K roundings of at most 2**-24 of a sum that grows as sqrt(K): far below 2e-6 sqrt(K)
    assert np.linalg.norm(got - want) <= 2e-6 * np.sqrt(K) * np.linalg.norm(want)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("variant", ["int8", "bf16"])
def test_every_strategy_counts_by_its_formula_and_gives_the_same_product(
    strategy: str, variant: str
) -> None:
    kernel = load_kernel("matmul_64x512", variant)
    M, K, N = 300, 200, 700  # several blocks, ragged in every dimension
    a, b = random_int8(1, M, K), random_int8(2, K, N)
    left = a if variant == "int8" else a.astype(np.float32)
    dtype = np.int32 if variant == "int8" else np.float32
    got = npu_matmul(left, b, dtype=dtype, device="emulated", kernel=kernel, strategy=strategy)
    report, counts = last_call(), expected(strategy, TileGrid(kernel, M, K, N))
    for name in vars(counts):
        assert getattr(report, name) == getattr(counts, name), name
    # integers below 2**24 are exact in f32 too
    assert_equal_bits(got, product_int32(a, b).astype(dtype))
