"""Attention on the host in bf16 against softmax(Q K') V in float64."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
from comparing import assert_equal_bits
from numpy.typing import NDArray

from npu_matmul.host import attention as host
from npu_matmul.host import powers
from npu_matmul.host.attention import attention
from npu_matmul.host.paths import PATH_VARIABLE, PORTABLE
from npu_matmul.host.threads import THREADS_VARIABLE
from npu_matmul.precision import to_bf16

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]

if not host.usable():
    pytest.skip("this CPU has no bf16 instructions", allow_module_level=True)

# A weight is rounded to bf16, at most 2**-8 of it off. The rest is small beside that: powers of two
# off by 6e-6, sums in float32.
BOUND = 2**-8 + 1e-4


def projections(tokens: int, width: int, seed: int = 0, spread: float = 1.5) -> list[Floats]:
    """Queries, keys and values side by side, as one product of the encoder leaves them."""
    random = np.random.default_rng(seed)
    qkv = random.standard_normal((tokens, 3 * width), np.float32) * np.float32(spread)
    return np.split(qkv, 3, axis=1)


def computed(query: Floats, key: Floats, value: Floats, tokens: int, width: int) -> Floats:
    out = np.full(query.shape, np.nan, np.float32)
    attention(query, key, value, out, tokens, width)
    return out


def exact(query: Floats, key: Floats, value: Floats) -> tuple[Wide, Wide]:
    """Of one head, with operands rounded as they must be; and with all values made positive."""
    factor = np.float32(math.log2(math.e) / math.sqrt(query.shape[1]))
    q, k, v = (to_bf16(x).astype(np.float64) for x in (query * factor, key, value))
    scores = q @ k.T
    weights = np.exp2(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ v, weights @ np.abs(v)


@pytest.mark.parametrize("tokens", [1, 2, 3, 13, 15, 28, 31, 32, 33, 57, 100, 1500])
@pytest.mark.parametrize("width", [2, 30, 64, 96])
def test_one_head_is_within_its_bound(tokens: int, width: int) -> None:
    given = projections(tokens, width, seed=tokens)
    want, scale = exact(*given)
    got = computed(*given, tokens, width)
    assert (np.abs(got - want) <= BOUND * scale + 1e-6).all()


def test_unrounded_operands_are_not_far() -> None:
    """What bf16 costs in all, on scores as spread as a trained encoder's."""
    query, key, value = projections(300, 64)
    scores = query.astype(np.float64) @ key.T / 8
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    want = weights / weights.sum(axis=1, keepdims=True) @ value
    got = computed(query, key, value, 300, 64)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-2


@pytest.mark.parametrize(("windows", "heads"), [(1, 5), (3, 1), (2, 3)])
def test_windows_and_heads_are_apart(windows: int, heads: int) -> None:
    tokens, width = 41, 32
    query, key, value = projections(windows * tokens, heads * width)
    got = computed(query, key, value, tokens, width)
    for top in range(0, windows * tokens, tokens):
        for left in range(0, heads * width, width):
            head = slice(top, top + tokens), slice(left, left + width)
            alone = [np.ascontiguousarray(x[head]) for x in (query, key, value)]
            assert_equal_bits(got[head], computed(*alone, tokens, width))


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    given = projections(2 * 65, 3 * 16)
    results = []
    for count in (1, 2, 3, 5, 100):
        monkeypatch.setenv(THREADS_VARIABLE, str(count))
        results.append(computed(*given, 65, 16))
    for other in results[1:]:
        assert_equal_bits(other, results[0])


def test_operands_are_not_changed_nor_what_lies_beside_the_result() -> None:
    query, key, value = projections(50, 64)
    before = query.base.copy()  # type: ignore[union-attr]
    around = np.full((50, 192), 7, np.float32)
    attention(query, key, value, around[:, 64:128], 50, 64)
    assert (around[:, :64] == 7).all() and (around[:, 128:] == 7).all()
    assert_equal_bits(around[:, 64:128], computed(query, key, value, 50, 64))
    assert_equal_bits(query.base, before)


# Extremes


def test_scores_far_apart_choose_one_value() -> None:
    query, key, value = projections(40, 64)
    got = computed(query * np.float32(1e18), key * np.float32(1e18), value, 40, 64)
    chosen = np.argmax(query.astype(np.float64) @ key.T, axis=1)
    assert_equal_bits(got, to_bf16(value)[chosen].astype(np.float32))


def test_equal_scores_give_the_mean() -> None:
    query, key, value = projections(33, 64)
    got = computed(np.zeros_like(query), key, value, 33, 64)
    mean = to_bf16(value).astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(got, np.broadcast_to(mean, got.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_own_row_or_column_only(bad: float) -> None:
    query, key, value = projections(40, 64)
    want = computed(query, key, value, 40, 64)
    query = query.copy()
    query[17, 5] = bad
    got = computed(query, key, value, 40, 64)
    assert np.isnan(got[17]).all()
    assert_equal_bits(np.delete(got, 17, axis=0), np.delete(want, 17, axis=0))
    value = value.copy()
    value[3, 9] = bad
    got = computed(projections(40, 64)[0], key, value, 40, 64)
    assert not np.isfinite(got[:, 9]).any()
    assert_equal_bits(np.delete(got, 9, axis=1), np.delete(want, 9, axis=1))


def test_nothing_is_done_without_rows() -> None:
    nothing = np.empty((0, 64), np.float32)
    assert computed(nothing, nothing, nothing, 5, 64).shape == (0, 64)


def test_the_variable_for_paths_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, PORTABLE)
    assert not host.usable()


# Weights of a row


@numba.njit
def weigh(scores, weights):  # type: ignore[no-untyped-def]
    return powers.weigh_row(scores.size, scores.ctypes.data, weights.ctypes.data)


def test_weights_are_powers_of_two_rounded_to_bf16() -> None:
    scores = np.concatenate([np.linspace(-130, 0, 8191), [-np.inf]]).astype(np.float32)
    weights = np.zeros(scores.size, np.uint16)
    total = weigh(scores, weights)
    want = np.exp2(scores.astype(np.float64))
    got = (weights.astype(np.uint32) << 16).view(np.float32)
    normal = want >= 2**-126
    assert (np.abs(got / np.where(normal, want, 1) - 1) <= 2**-8 + 6e-6)[normal].all()
    assert (got[~normal] <= 2**-126).all()
    assert total == pytest.approx(want.sum(), rel=6e-6)
    # a single weight, before it is rounded: the others vanish
    for score in np.linspace(-1, 0, 1001, dtype=np.float32):
        pair = np.full(32, -np.inf, np.float32)
        pair[[3, 20]] = 0, score
        alone = weigh(pair, np.zeros(32, np.uint16)) - 1
        assert alone == pytest.approx(2.0 ** float(score), rel=6e-6)
