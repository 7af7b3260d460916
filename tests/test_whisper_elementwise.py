"""LayerNorm, softmax, GELU and sums against float64, within the bounds that their module states."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits
from numpy.typing import NDArray

from npu_matmul.host import threads
from npu_matmul.host.threads import THREADS_VARIABLE
from npu_matmul.whisper import elementwise
from npu_matmul.whisper.elementwise import add, add_bias, gelu, layer_norm, softmax

Floats = NDArray[np.float32]
PHI_BOUND = 4e-7
GELU_BOUND = 4e-7  # times max(1, |x|)
SOFTMAX_BOUND = 1e-6  # relative
LAYER_NORM_BOUND = 4e-6  # times max(1, |y|)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def erf(x: NDArray[Any]) -> NDArray[np.float64]:
    """In float64, value by value."""
    return np.array([math.erf(value) for value in np.ravel(x).tolist()]).reshape(np.shape(x))


def exact_gelu(x: NDArray[Any]) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return wide / 2 * (1 + erf(wide / math.sqrt(2)))


def exact_softmax(x: NDArray[Any], scale: float) -> NDArray[np.float64]:
    wide = x.astype(np.float64) * scale
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def exact_layer_norm(x: Floats, weight: Floats, bias: Floats) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * weight + bias


# GELU


def test_the_distribution_function_is_within_its_bound_everywhere() -> None:
    y = np.linspace(-8, 8, 40_001).astype(np.float32)
    got = np.array([elementwise._phi(value) for value in y])
    want = (1 + erf(y.astype(np.float64) / math.sqrt(2))) / 2
    assert np.abs(got - want).max() <= PHI_BOUND
    assert (got[y < -5.5] == 0).all()


@pytest.mark.parametrize("spread", [1e-3, 1.0, 3.0, 30.0, 1e4])
def test_gelu_is_the_exact_form_within_its_bound(spread: float) -> None:
    x = normal(1, 37, 250) * np.float32(spread)
    bias = normal(2, 250)
    want = exact_gelu(x + bias)
    got = gelu(x.copy(), bias)
    assert (np.abs(got - want) / np.maximum(1, np.abs(x + bias))).max() <= GELU_BOUND


def test_gelu_is_not_the_form_with_tanh() -> None:
    x = np.linspace(-4, 4, 801, dtype=np.float32)[np.newaxis]
    tanh = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    got = gelu(x.copy(), np.zeros(801, np.float32))
    assert np.abs(got - tanh).max() > 1e-4  # they differ by up to 5e-4


def test_gelu_passes_nan_and_infinity_on() -> None:
    x = np.array([[np.nan, np.inf, 3.4e38, -3.4e38, 0.0]], np.float32)
    got = gelu(x.copy(), np.zeros(5, np.float32))[0]
    assert np.isnan(got[0]) and got[1] == np.inf and got[2] == np.float32(3.4e38)
    assert got[3] == 0 and got[4] == 0


# Softmax


@pytest.mark.parametrize("columns", [1, 2, 17, 64, 1500])
@pytest.mark.parametrize(("spread", "scale"), [(1, 1), (20, 0.125), (300, 0.125)])
def test_softmax_is_within_its_bound(columns: int, spread: float, scale: float) -> None:
    x = normal(columns, 23, columns) * np.float32(spread)
    want = exact_softmax(x, scale)
    got = softmax(x.copy(), scale)
    shown = (x - x.max(axis=1, keepdims=True)) * scale > -86  # the others are below 1e-37
    # The argument of exp is rounded once: its relative error becomes the result's absolute one.
    bound = SOFTMAX_BOUND + np.abs((x - x.max(axis=1, keepdims=True)) * scale) * 2**-23
    assert (np.abs(got / want - 1)[shown] <= bound[shown]).all()
    assert got[~shown].max(initial=0) < 1e-36
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)


def test_softmax_of_what_is_far_below_the_largest_is_zero() -> None:
    x = np.array([[0, -86, -88, -1e30, -np.inf]], np.float32)
    got = softmax(x)[0]
    assert got[0] == 1 and 0 < got[1] < 1e-36
    assert_equal_bits(got[2:], np.zeros(3, np.float32))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_a_row_with_nan_or_infinity_becomes_nan_and_no_other_row(bad: float) -> None:
    x = normal(1, 3, 70)
    want = softmax(x.copy())
    x[1, 33] = bad
    got = softmax(x)
    assert np.isnan(got[1]).all() or (bad == np.inf and np.isnan(got[1, 33]))
    assert_equal_bits(got[[0, 2]], want[[0, 2]])


def test_softmax_of_negative_and_huge_scores() -> None:
    x = np.array([[-3e38, -3e38], [3e38, 3e38], [-1e-40, -1e-40]], np.float32)
    assert_equal_bits(softmax(x), np.full((3, 2), 0.5, np.float32))


# LayerNorm


@pytest.mark.parametrize("columns", [1, 7, 64, 384, 1280])
@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (3, 1), (0, 1e-4), (-5, 100)])
def test_layer_norm_is_within_its_bound(columns: int, mean: float, spread: float) -> None:
    x = normal(columns, 19, columns) * np.float32(spread) + np.float32(mean)
    weight, bias = normal(1, columns), normal(2, columns)
    want = exact_layer_norm(x, weight, bias)
    before = x.copy()
    got = layer_norm(x, weight, bias)
    # A mean that is large beside the deviation costs its digits.
    worse = 1 + abs(mean) / max(spread, 1e-5**0.5)
    assert (np.abs(got - want) <= LAYER_NORM_BOUND * worse * np.maximum(1, np.abs(want))).all()
    assert_equal_bits(x, before)


def test_layer_norm_of_a_constant_row_is_the_bias() -> None:
    bias = normal(1, 64)
    x = np.full((2, 64), 7, np.float32)
    np.testing.assert_allclose(layer_norm(x, normal(2, 64), bias), [bias, bias], atol=1e-3)


# Sums


def test_sums_are_those_of_numpy() -> None:
    x, y, bias = normal(1, 31, 45), normal(2, 31, 45), normal(3, 45)
    assert_equal_bits(add_bias(x.copy(), bias), x + bias)
    assert_equal_bits(add(x.copy(), y, bias), x + (y + bias))


def test_results_are_in_place_except_those_of_layer_norm() -> None:
    x, row = normal(1, 3, 4), normal(2, 4)
    assert softmax(x) is x and gelu(x, row) is x and add_bias(x, row) is x and add(x, x, row) is x
    assert layer_norm(x, row, row) is not x


# Threads


@pytest.mark.parametrize(
    "function",
    [
        lambda x: softmax(x, 0.5),
        lambda x: gelu(x, normal(9, x.shape[1])),
        lambda x: layer_norm(x, normal(8, x.shape[1]), normal(9, x.shape[1])),
        lambda x: add(x, normal(8, *x.shape), normal(9, x.shape[1])),
        lambda x: add_bias(x, normal(9, x.shape[1])),
    ],
    ids=["softmax", "gelu", "layer_norm", "add", "add_bias"],
)
def test_threads_change_no_bit(
    function: Callable[[Floats], Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(1, 101, 33)
    monkeypatch.setattr(threads, "WORTH_S", 1e-12)
    results = []
    for count in (1, 2, 3, 7, 50):
        monkeypatch.setenv(THREADS_VARIABLE, str(count))
        results.append(function(x.copy()))
    for other in results[1:]:
        assert_equal_bits(other, results[0])
    # a row does not depend on the others
    assert_equal_bits(function(x[:101].copy())[50], results[0][50])


def test_nothing_is_done_with_no_rows() -> None:
    row = normal(1, 5)
    assert gelu(np.empty((0, 5), np.float32), row).shape == (0, 5)
    assert layer_norm(np.empty((0, 5), np.float32), row, row).shape == (0, 5)


def test_docstring_examples_run() -> None:
    result = doctest.testmod(elementwise)
    assert result.attempted > 0
    assert result.failed == 0
