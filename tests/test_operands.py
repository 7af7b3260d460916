"""What is an operand, a result type and an ``out``; what is not is refused with its cure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comparing import ON_A_REAL_NPU, assert_equal_bits, clipped_int8, product_int32, random_int8

from npu_matmul import npu_matmul, pack_b

every_device = pytest.mark.parametrize("device", ["cpu", "emulated", ON_A_REAL_NPU])


MISMATCHED = [
    ((2, 3), (2, 3)),
    ((3,), (4,)),
    ((3,), (4, 3)),
    ((2, 3), (2,)),
    ((), (3,)),
    ((2, 3), ()),
    ((2, 2, 3), (3, 3, 4)),
    ((2, 2, 3), (2, 4, 3)),
    ((0, 3), (2, 3)),
]


@every_device
@pytest.mark.parametrize(("a_shape", "b_shape"), MISMATCHED)
def test_shapes_that_do_not_fit_are_refused_in_numpys_words(
    device: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    a, b = np.zeros(a_shape, np.int8), np.zeros(b_shape, np.int8)
    with pytest.raises(ValueError) as numpys:
        np.matmul(a, b)
    with pytest.raises(ValueError) as ours:
        npu_matmul(a, b, device=device)
    assert str(ours.value) == str(numpys.value)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "bool"])
@pytest.mark.parametrize("operand", ["A", "B"])
def test_other_integers_are_refused_with_the_cast_that_cures_it(operand: str, dtype: str) -> None:
    good, bad = np.ones((2, 2), np.int8), np.ones((2, 2), dtype)
    pair = (bad, good) if operand == "A" else (good, bad)
    with pytest.raises(TypeError, match=rf"operand {operand} is {dtype};.*int8") as refused:
        npu_matmul(*pair, device="cpu")
    assert f"{operand}.astype(np.int8)" in str(refused.value)


@pytest.mark.parametrize("dtype", ["longdouble", "complex64", "object", "timedelta64[s]"])
@pytest.mark.parametrize("operand", ["A", "B"])
def test_what_is_no_real_float_is_refused(operand: str, dtype: str) -> None:
    good, bad = np.ones((2, 2), np.int8), np.ones((2, 2), dtype)
    pair = (bad, good) if operand == "A" else (good, bad)
    with pytest.raises(TypeError, match=rf"operand {operand} is .*supported are int8, float16"):
        npu_matmul(*pair, device="cpu")


@pytest.mark.parametrize("operand", ["A", "B"])
def test_a_mask_is_not_lost(operand: str) -> None:
    good = np.ones((2, 2), np.int8)
    bad = np.ma.array(good, mask=[[1, 0], [0, 0]])
    pair = (bad, good) if operand == "A" else (good, bad)
    with pytest.raises(TypeError, match=rf"operand {operand} is a masked array.*{operand}.filled"):
        npu_matmul(*pair, device="cpu")
    with pytest.raises(TypeError, match="operand B is a masked array"):
        pack_b(bad, device="cpu")
    packed = pack_b(good, device="cpu")
    with pytest.raises(TypeError, match="operand A is a masked array"):
        npu_matmul(bad, packed, out=np.zeros((2, 2), np.int8))


def test_int8_with_a_b_that_is_packed_for_floats_asks_for_the_type() -> None:
    a, b = random_int8(1, 3, 4), random_int8(2, 4, 5)
    packed = pack_b(b, device="cpu", precision="bf16")
    with pytest.raises(TypeError, match="B is packed for products of floats; say which type"):
        npu_matmul(a, packed)
    got = npu_matmul(a, packed, dtype=np.float32)
    assert_equal_bits(got, product_int32(a, b).astype(np.float32))  # exact: sums below 2**24


@pytest.mark.parametrize("name", ["exact", "int4"])
def test_a_packed_b_knows_no_other_precisions_either(name: str) -> None:
    a, b = random_int8(1, 3, 4), random_int8(2, 4, 5)
    with pytest.raises(ValueError, match=f"no precision '{name}'; known are: bf16, "):
        npu_matmul(a, pack_b(b, device="cpu"), precision=name)


def test_what_is_packed_is_not_packed_again() -> None:
    with pytest.raises(TypeError, match="B is packed already"):
        pack_b(pack_b(random_int8(1, 4, 5), device="cpu"), device="cpu")


@pytest.mark.parametrize("dtype", [">i4", "<i4"])
def test_a_result_type_of_either_byte_order_is_the_native_one(dtype: str) -> None:
    a, b = random_int8(1, 3, 4), random_int8(2, 4, 5)
    got = npu_matmul(a, b, dtype=dtype, device="cpu")
    assert got.dtype.isnative
    assert_equal_bits(got, product_int32(a, b))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, "uint8", ">i2"])
def test_a_result_is_int8_or_int32(dtype: Any) -> None:
    a = np.ones((2, 2), np.int8)
    with pytest.raises(TypeError, match=r"np\.int8 .*np\.int32"):
        npu_matmul(a, a, dtype=dtype, device="cpu")
    assert npu_matmul(a, a, dtype="int32", device="cpu").dtype == np.int32


@every_device
@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_out_is_filled_and_returned_whatever_its_memory_layout(device: str, dtype: Any) -> None:
    a, b = random_int8(1, 2, 17, 20), random_int8(2, 20, 9)
    want = product_int32(a, b) if dtype == np.int32 else clipped_int8(a, b)
    wide = np.full((2, 17, 18), 77, dtype)
    for out in (
        np.empty((2, 17, 9), dtype),
        np.empty((2, 17, 9), dtype, order="F"),
        wide[..., ::2],
    ):
        assert npu_matmul(a, b, out, dtype=dtype, device=device) is out
        assert_equal_bits(out, want)
    assert (wide[..., 1::2] == 77).all()


@every_device
@pytest.mark.parametrize("dtype", [">i4", ">f4", ">f8", ">f2"])
def test_out_may_have_any_byte_order(device: str, dtype: str) -> None:
    a, b = random_int8(1, 9, 20), random_int8(2, 20, 7)
    native = np.dtype(dtype).newbyteorder("=")
    if dtype != ">i4":
        a, b = a.astype(native), b.astype(native)
    for right in (b, pack_b(b, device=device, precision=None if dtype == ">i4" else "bf16")):
        want = npu_matmul(a, right, dtype=native, device=device)
        out = np.full((9, 7), 7, dtype)
        assert npu_matmul(a, right, out, dtype=native, device=device) is out
        assert_equal_bits(out.astype(native), want)


@every_device
def test_out_may_be_an_operand(device: str) -> None:
    a, b = random_int8(1, 20, 20), random_int8(2, 20, 20)
    want = clipped_int8(a, b)
    assert npu_matmul(a, b, out=a, device=device) is a
    assert_equal_bits(a, want)
    want = clipped_int8(b, b)
    npu_matmul(b, b, out=b, device=device)
    assert_equal_bits(b, want)


def test_a_scalar_result_fills_an_out_of_no_dimensions() -> None:
    out = np.zeros((), np.int32)
    a = np.array([3, 4], np.int8)
    assert npu_matmul(a, a, out, dtype=np.int32, device="cpu") is out
    assert out == 25


READ_ONLY = np.zeros((2, 2), np.int8)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((2, 3), np.int8), ValueError, r"\(2, 3\); the result has \(2, 2\): pass"),
        (np.zeros((1, 2, 2), np.int8), ValueError, r"\(1, 2, 2\)"),
        (np.zeros((2, 2), np.int32), TypeError, "out is int32, .*dtype=int32"),
        ([[0, 0], [0, 0]], TypeError, "not list"),
        (np.ma.zeros((2, 2), np.int8), TypeError, "out is a masked array, .* pass out.data"),
        (READ_ONLY, ValueError, "npu_matmul: out is read-only; pass an array that can be written"),
    ],
)
def test_an_unfit_out_is_refused_untouched(out: Any, error: type, message: str) -> None:
    a = np.ones((2, 2), np.int8)
    with pytest.raises(error, match=message):
        npu_matmul(a, a, out, device="cpu")
    assert not np.any(out)
