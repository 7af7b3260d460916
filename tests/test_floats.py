"""Products of floats: NumPy's result types, stated accuracy, IEEE specials, on every device."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from comparing import ON_A_REAL_NPU, assert_equal_bits, random_int8
from numpy.typing import NDArray

from npu_matmul import last_call, npu_matmul, pack_b
from npu_matmul.host import product
from npu_matmul.precision import BF16, PRECISIONS, QuantiseError, to_bf16

FLOATS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
every_device = pytest.mark.parametrize("device", ["cpu", "emulated", ON_A_REAL_NPU])
every_precision = pytest.mark.parametrize("precision", list(PRECISIONS))


def normals(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def error(got: NDArray[Any], want: NDArray[np.float64]) -> float:
    """Relative to the Frobenius norm of the whole result."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


@every_device
@every_precision
@pytest.mark.parametrize("a_type", [*FLOATS, np.int8])
@pytest.mark.parametrize("b_type", [*FLOATS, np.int8])
def test_the_result_type_is_numpys(device: str, precision: str, a_type: Any, b_type: Any) -> None:
    a, b = normals(1, 5, 7).astype(a_type), normals(2, 7, 3).astype(b_type)
    if a_type == b_type == np.int8:
        with pytest.raises(ValueError, match="int8 products are exact"):
            npu_matmul(a, b, precision=precision, device=device)
        return
    try:
        want = np.result_type(a, b)
    except TypeError:  # float16 with bfloat16: NumPy knows no common type
        with pytest.raises(TypeError, match="NumPy knows no common type of the two; say which"):
            npu_matmul(a, b, precision=precision, device=device)
        want = np.dtype(np.float32)
        got = npu_matmul(a, b, dtype=want, precision=precision, device=device)
        assert error(got, a.astype(np.float64) @ b.astype(np.float64)) < 0.02
        assert got.dtype == want
        return
    got = npu_matmul(a, b, precision=precision, device=device)
    assert got.dtype == want
    assert last_call().precision == precision


@every_device
def test_bf16_is_the_product_of_the_rounded_operands(device: str) -> None:
    a, b = normals(1, 70, 300), normals(2, 300, 50)
    want = to_bf16(a).astype(np.float64) @ to_bf16(b).astype(np.float64)
    # f32 sums of K terms, each rounding at most 2**-24, which add up as a random walk
    bound = 2e-6 * np.sqrt(300)
    assert error(npu_matmul(a, b, device=device), want) < bound


@every_device
def test_three_terms_are_a_hundred_times_as_accurate_as_one(device: str) -> None:
    a, b = normals(1, 64, 512).astype(np.float32), normals(2, 512, 64).astype(np.float32)
    want = a.astype(np.float64) @ b.astype(np.float64)
    one = error(npu_matmul(a, b, precision="bf16", device=device), want)
    three = error(npu_matmul(a, b, precision="bf16x3", device=device), want)
    assert three * 100 <= one


@every_device
def test_int8_is_within_the_steps_of_its_scales(device: str) -> None:
    a, b = normals(1, 40, 128), normals(2, 128, 30)
    got = npu_matmul(a, b, precision="int8", device=device)
    step_a = np.abs(a).max(axis=1, keepdims=True) / 127
    step_b = np.abs(b).max(axis=0, keepdims=True) / 127
    # |a b - a' b'| <= |a| step_b / 2 + |b| step_a / 2 + step_a step_b / 4, summed over K
    bound = np.abs(a).sum(1, keepdims=True) * step_b / 2 + np.abs(b).sum(0) * step_a / 2
    assert (np.abs(got - a @ b) <= bound + 128 * step_a * step_b / 4).all()


def test_int8_has_the_same_bits_on_every_device_and_strategy() -> None:
    a, b = normals(1, 40, 100).astype(np.float32), normals(2, 100, 30).astype(np.float32)
    want = npu_matmul(a, b, precision="int8", device="cpu")
    for strategy in ("sequential", "output_tile", "batched"):
        got = npu_matmul(a, b, precision="int8", device="emulated", strategy=strategy)
        assert_equal_bits(got, want)


@pytest.mark.parametrize(
    ("a_size", "b_size"), [(1e-38, 1e30), (2e37, 1e-12), (1e-42, 1), (1, 1e36)]
)
def test_int8_keeps_its_accuracy_where_float32_would_leave_its_range(
    a_size: float, b_size: float
) -> None:
    a, b = normals(1, 20, 64) * a_size, normals(2, 64, 10) * b_size
    a[5:] /= a_size  # rows of both kinds
    a, b = a.astype(np.float32), b.astype(np.float32)
    want = a.astype(np.float64) @ b
    got = npu_matmul(a, b, precision="int8", device="cpu")
    assert_equal_bits(npu_matmul(a, b, precision="int8", device="emulated"), got)
    for rows in (slice(0, 5), slice(5, None)):
        # steps of 1/127 of about three deviations, each off by 0.3 of a step: 1 %, of A and of B
        assert error(got[rows], want[rows]) < 0.02


@every_device
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.full((2, 3), 3.0), np.ones((3, 2), np.float32)),
        (np.ones((2, 3), np.float32), np.full((3, 2), 1e60)),
    ],
    ids=["float64 A", "float64 B that float32 cannot hold"],
)
def test_int8_of_one_float64_operand_is_computed_in_float64(
    device: str, a: NDArray[Any], b: NDArray[Any]
) -> None:
    got = npu_matmul(a, b, precision="int8", device=device)
    np.testing.assert_allclose(got, a.astype(np.float64) @ b, rtol=1e-6)  # scales are float32's


@every_device
def test_zero_rows_and_columns_are_exact_in_int8(device: str) -> None:
    a, b = normals(1, 6, 20), normals(2, 20, 5)
    a[3], b[:, 2] = 0, 0
    got = npu_matmul(a, b, precision="int8", device=device)
    assert not got[3].any() and not got[:, 2].any()


@every_device
def test_int8_refuses_a_k_whose_sums_int32_cannot_hold(device: str) -> None:
    """Where all is alike, each product is 127 * 127: the largest sum there can be."""
    ones = np.ones((1, 133_145), np.float32)
    a, b = ones[:, 1:], ones[:, 1:].T
    got = npu_matmul(a, b, precision="int8", device=device)
    # rounded five times: both scales, the sum, and two products by scales
    assert abs(got[0, 0] - 133_144) <= 5 * 2**-24 * 133_144
    out = np.full((1, 1), 7, np.float32)
    with pytest.raises(ValueError, match=r"K is 133,145;.* up to 133,144 .*precision='bf16'"):
        npu_matmul(ones, ones.T, out, precision="int8", device=device)
    with pytest.raises(ValueError, match="K is 133,145"):
        pack_b(ones.T, precision="int8", device=device)
    assert out == 7
    assert_equal_bits(npu_matmul(a, b, precision="int8", device=device), got)


@every_device
def test_int8_refuses_what_it_lacks_and_the_next_call_works(device: str) -> None:
    a = normals(1, 4, 4)
    bad = a.copy()
    bad[1, 2] = np.nan
    with pytest.raises(QuantiseError, match=r"operand A holds nan at \(1, 2\)"):
        npu_matmul(bad, a, precision="int8", device=device)
    assert np.isfinite(npu_matmul(a, a, precision="int8", device=device)).all()


@every_device
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_out_is_untouched_where_int8_refuses(device: str, kind: Any, value: float) -> None:
    """Also what comes before the row that is refused, and whether or not B is packed."""
    a, b = normals(1, 200, 24).astype(kind), normals(2, 24, 40).astype(kind)
    weights = pack_b(b, precision="int8", device=device)
    bad_a, bad_b = a.copy(), b.copy()
    bad_a[-1, 3], bad_b[3, -1] = value, value
    out = np.full((200, 40), 7, np.float32)
    for operands in ((bad_a, weights), (bad_a, b), (a, bad_b), (a[np.newaxis], bad_b[np.newaxis])):
        into = out if operands[0].ndim == 2 else out[np.newaxis]
        with pytest.raises(QuantiseError):
            npu_matmul(*operands, into, dtype=np.float32, precision="int8", device=device)
        assert (out == 7).all()
    npu_matmul(a, weights, out, dtype=np.float32)
    assert_equal_bits(out, npu_matmul(a, b, dtype=np.float32, precision="int8", device=device))


def test_a_product_within_a_product_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal's handler may compute one after the rows of the first were quantised."""
    weights = pack_b(normals(1, 24, 40).astype(np.float32), precision="int8", device="cpu")
    left, other = (normals(seed, 200, 24).astype(np.float32) for seed in (2, 3))
    want, out, steps = npu_matmul(left, weights), np.empty((200, 40), np.float32), []
    run = product.in_parts

    def interrupted(task: Any, *given: Any) -> bool:
        steps.append(task)
        if len(steps) == 2:
            npu_matmul(other, weights, np.empty((200, 40), np.float32))
        return run(task, *given)

    monkeypatch.setattr(product, "in_parts", interrupted)
    assert_equal_bits(npu_matmul(left, weights, out), want)
    assert len(steps) == 4


@every_device
def test_the_place_that_int8_refuses_is_that_in_the_callers_array(device: str) -> None:
    """Which is not the place in the one matrix that a stack or a row is turned into."""
    stack, matrix, row = normals(1, 2, 3, 4), normals(2, 4, 5), normals(3, 4)
    bad_stack, bad_row = stack.copy(), row.copy()
    bad_stack[1, 2, 3], bad_row[2] = np.inf, np.nan
    for a, b, words in [
        (bad_stack, matrix, r"operand A holds inf at \(1, 2, 3\)"),
        (bad_row, matrix, "operand A holds nan at 2;"),
        (matrix.T, np.swapaxes(bad_stack, 1, 2), r"operand B holds inf at \(1, 3, 2\)"),
        (matrix.T, bad_row, "operand B holds nan at 2;"),
    ]:
        with pytest.raises(QuantiseError, match=words):
            npu_matmul(a, b, precision="int8", device=device)


@every_device
@pytest.mark.parametrize("precision", ["bf16", "bf16x3"])
def test_specials_pass_through_as_ieee_says(device: str, precision: str) -> None:
    inf, nan = np.inf, np.nan
    a = np.array(
        [[inf, 1, 2], [nan, 1, 2], [1, -1, 0], [-0.0, 0, 0], [3e38, 3e38, 3e38]], np.float32
    )
    b = np.array([[1, 0, 2, inf], [2, 1, 3, inf], [3, 0, -1, 1]], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        want = a @ b
    got = npu_matmul(a, b, precision=precision, device=device)
    assert_equal_bits(np.isnan(got), np.isnan(want))
    infinite = np.isinf(want)
    assert_equal_bits(np.isinf(got), infinite)
    assert_equal_bits(got[infinite], want[infinite])


@every_device
def test_values_beyond_bf16_become_infinite_as_ml_dtypes_rounds_them(device: str) -> None:
    big = np.array([[np.finfo(np.float32).max]], np.float32)
    assert np.isinf(big.astype(BF16).astype(np.float32)).all()
    assert np.isinf(npu_matmul(big, np.ones((1, 1), np.float32), device=device)).all()
    huge = np.array([[1e300]])
    assert np.isinf(npu_matmul(huge, np.ones((1, 1)), device=device)).all()


@every_device
@every_precision
def test_a_packed_matrix_gives_the_same_bits_and_moves_no_weights(
    device: str, precision: str
) -> None:
    a, b = normals(1, 20, 40).astype(np.float32), normals(2, 40, 30).astype(np.float32)
    want = npu_matmul(a, b, precision=precision, device=device)
    whole = last_call().bytes_to_device
    packed = pack_b(b, precision=precision, device=device)
    assert_equal_bits(npu_matmul(a, packed), want)
    assert last_call().precision == precision
    if device == "emulated":
        kernel = packed.kernel
        assert kernel is not None
        depth = PRECISIONS[precision].terms * -(-40 // kernel.tile.k) * kernel.tile.k
        rows = -(-20 // kernel.block[0]) * kernel.block[0]
        assert last_call().bytes_to_device == rows * depth * kernel.a_dtype.itemsize
        assert whole > last_call().bytes_to_device


def test_a_packed_matrix_keeps_its_precision_and_result_type() -> None:
    packed = pack_b(normals(1, 4, 4), precision="int8", device="cpu")
    with pytest.raises(ValueError, match=r"packed as 'int8'.*pack_b\(B, precision='bf16'\)"):
        npu_matmul(np.ones((2, 4)), packed, precision="bf16")
    assert npu_matmul(np.ones((2, 4), np.float32), packed).dtype == np.float64
    exact = pack_b(random_int8(1, 4, 4), device="cpu")
    with pytest.raises(TypeError, match=r"A is float32.*pack_b\(B, precision='bf16'\)"):
        npu_matmul(np.ones((2, 4), np.float32), exact)
    mixed = pack_b(random_int8(1, 4, 4), precision="bf16", device="cpu")
    assert npu_matmul(np.ones((2, 4), np.float32), mixed).dtype == np.float32


@every_device
def test_shapes_out_and_dtype_are_numpys(device: str) -> None:
    a, b = normals(1, 2, 3, 6, 5).astype(np.float32), normals(2, 3, 5, 4).astype(np.float32)
    out = np.empty((2, 3, 6, 4), np.float64)
    assert npu_matmul(a, b, out, dtype=np.float64, device=device) is out
    want = a.astype(np.float64) @ b
    assert error(out, want) < 2**-7
    vector = npu_matmul(a[0, 0, 0], b[0, :, 0], device=device)
    assert isinstance(vector, np.float32)
    with pytest.raises(TypeError, match="products of floats give one of"):
        npu_matmul(a, b, dtype=np.int32, device=device)
    empty = npu_matmul(np.zeros((3, 0), np.float16), np.zeros((0, 4), np.float16), device=device)
    assert_equal_bits(empty, np.zeros((3, 4), np.float16))


@every_device
@every_precision
@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_any_byte_order_of_any_float_gives_the_same(
    device: str, precision: str, dtype: str
) -> None:
    """Also numbers that float32 would round to the middle of two bf16 numbers, or to infinity."""
    a, b = normals(1, 20, 17).astype(dtype), normals(2, 17, 12).astype(dtype)
    a[0, 0] = b[0, 0] = 1 + 2**-8 + 2**-40
    if dtype == "f8" and precision != "int8":
        a[1, 1] = 1e39
    options: dict[str, Any] = {"precision": precision, "device": device, "dtype": np.float32}
    want = npu_matmul(a, b, **options)
    other = a.astype(">" + dtype), b.astype(">" + dtype)
    for left, right in [(other[0], b), (a, other[1]), other]:
        assert_equal_bits(npu_matmul(left, right, **options), want)


@every_device
def test_byte_order_and_layout_do_not_matter(device: str) -> None:
    a, b = normals(1, 20, 17).astype(np.float32), normals(2, 17, 12).astype(np.float32)
    want = npu_matmul(a, b, device=device)
    assert_equal_bits(npu_matmul(a.astype(">f4"), np.asfortranarray(b), device=device), want)
    wide = np.zeros((40, 34), np.float32)
    wide[::2, ::2] = a
    assert_equal_bits(npu_matmul(wide[::2, ::2], b.astype(">f4"), device=device), want)
