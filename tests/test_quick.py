"""The short way for small products: the same numbers and refusals as the long one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from host_paths import paths_for

from npu_matmul import PackedMatrix, last_call, npu_matmul, pack_b
from npu_matmul.device import DeviceError
from npu_matmul.device.cpu import CpuDevice
from npu_matmul.host.paths import PORTABLE, usable_paths

every_path = pytest.mark.parametrize("path", paths_for("int8", portable=False))
pytestmark = pytest.mark.skipif(
    usable_paths("int8")[0].name == PORTABLE, reason="this CPU has the portable path only"
)


def packed(b: Any, path: Any = None) -> PackedMatrix:
    cpu = CpuDevice()
    if path is not None:
        cpu.paths["int8"] = path
    return pack_b(b, device=cpu)


@every_path
def test_small_products_are_exact_and_go_the_short_way(path: Any) -> None:
    for size in [*range(1, 34), 63, 64, 65, 127]:
        a, b = random_int8(size, size, size + 1), random_int8(size + 1, size + 1, size + 2)
        weights = packed(b, path)
        want = product_int32(a, b)
        out = np.full(want.shape, 77, np.int32)
        assert npu_matmul(a, weights, out=out, dtype=np.int32) is out
        assert_equal_bits(out, want)
        clipped = np.full(want.shape, 77, np.int8)
        assert npu_matmul(a, weights, out=clipped) is clipped
        assert_equal_bits(clipped, np.clip(want, -128, 127).astype(np.int8))
        assert last_call() is weights.quick.report  # type: ignore[union-attr]
        assert last_call().arithmetic == f"INT32, exact ({path.name})"
        assert last_call().device == "cpu" and last_call().precision == "exact"


@pytest.mark.parametrize("dtype", [None, np.int32])
def test_a_result_can_be_the_out_of_the_next_call(dtype: Any) -> None:
    a, b = random_int8(1, 6, 7), random_int8(2, 7, 8)
    weights = packed(b)
    out = npu_matmul(a, weights, dtype=dtype)
    assert npu_matmul(a, weights, out=out, dtype=dtype) is out
    assert last_call() is weights.quick.report  # type: ignore[union-attr]


@every_path
def test_any_strides_of_a_and_rows_of_out_that_lie_apart(path: Any) -> None:
    a, b = random_int8(1, 20, 30), random_int8(2, 30, 40)
    weights, want = packed(b, path), product_int32(a, b)
    spread = np.full((40, 90), 5, np.int8)
    spread[::2, ::3] = a
    read_only = a.copy()
    read_only.flags.writeable = False
    for left in (
        np.asfortranarray(a),
        spread[::2, ::3],
        a[::-1, ::-1].copy()[::-1, ::-1],
        read_only,
    ):
        around = np.full((22, 50), 99, np.int32)
        npu_matmul(left, weights, out=around[1:-1, 5:-5], dtype=np.int32)
        assert last_call() is weights.quick.report  # type: ignore[union-attr]
        assert_equal_bits(around[1:-1, 5:-5], want)
        around[1:-1, 5:-5] = 99
        assert (around == 99).all()


def test_what_is_not_of_the_kind_goes_the_long_way_with_the_same_result() -> None:
    a, b = random_int8(1, 6, 6), random_int8(2, 6, 6)
    weights, want = packed(b), product_int32(a, b)

    def long_way(out: Any, left: Any = a, **options: Any) -> None:
        npu_matmul(left, weights, out=out, dtype=np.int32, **options)
        assert last_call() is not weights.quick.report  # type: ignore[union-attr]

    out = np.zeros((6, 6), np.int32)
    long_way(out, strategy="batched")
    assert_equal_bits(out, want)
    backwards = np.zeros((6, 12), np.int32)[:, ::2]
    long_way(backwards)
    assert_equal_bits(np.ascontiguousarray(backwards), want)
    row = np.zeros(6, np.int32)
    long_way(row, left=a[2])
    assert_equal_bits(row, want[2])
    stack = np.zeros((2, 6, 6), np.int32)
    long_way(stack, left=np.stack([a, a[::-1]]))
    assert_equal_bits(stack, np.stack([want, want[::-1]]))


def test_an_out_that_overlaps_a_is_computed_as_if_it_did_not() -> None:
    for shift in (-3, 0, 1, 36):
        memory = np.zeros(400, np.int8)
        a = memory[64:100].reshape(6, 6)
        a[...] = random_int8(3, 6, 6)
        b = random_int8(4, 6, 6)
        want = np.clip(product_int32(a, b), -128, 127).astype(np.int8)
        out = memory[64 + shift : 100 + shift].reshape(6, 6)
        npu_matmul(a, packed(b), out=out)
        assert_equal_bits(out, want)


READ_ONLY = np.zeros((6, 6), np.int8)
READ_ONLY.flags.writeable = False
OTHER_DEVICE = {"device": "emulated"}


@pytest.mark.parametrize(
    ("out", "options", "error", "words"),
    [
        (READ_ONLY, {}, ValueError, "read-only"),
        (np.zeros((6, 6), np.int8), OTHER_DEVICE, ValueError, "packed for device 'cpu'"),
        (np.zeros((6, 6), np.int8), {"dtype": np.float32}, TypeError, "int8 products give"),
        (np.zeros((6, 5), np.int8), {}, ValueError, r"out has shape \(6, 5\)"),
        (np.zeros((6, 6), np.int32), {}, TypeError, "out is int32, the result is int8"),
        (np.zeros((6, 6), np.int8), {"dtype": np.int32}, TypeError, "out is int8"),
        (np.broadcast_to(np.int8(0), (6, 6)), {}, ValueError, "read-only"),
        ([[0] * 6] * 6, {}, TypeError, "out must be an array"),
        (np.ma.zeros((6, 6), np.int8), {}, TypeError, "out is a masked array"),
        (np.zeros((6, 6), np.int8), {"on_error": "ignore"}, ValueError, "on_error='ignore'"),
    ],
)
def test_what_the_long_way_refuses_is_refused(
    out: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        npu_matmul(random_int8(1, 6, 6), packed(random_int8(2, 6, 6)), out=out, **options)
    with pytest.raises(ValueError, match="matmul"):
        npu_matmul(
            random_int8(1, 6, 7), packed(random_int8(2, 6, 6)), out=np.zeros((6, 6), np.int8)
        )


def test_a_closed_device_is_refused() -> None:
    weights = packed(random_int8(2, 6, 6))
    weights.device.close()
    with pytest.raises((DeviceError, ValueError), match="closed"):
        npu_matmul(random_int8(1, 6, 6), weights, out=np.zeros((6, 6), np.int8))


def test_large_products_and_floats_do_not_take_the_short_way() -> None:
    b = random_int8(1, 512, 512)
    weights = packed(b)
    a = random_int8(2, 200, 512)
    out = np.zeros((200, 512), np.int32)
    npu_matmul(a, weights, out=out, dtype=np.int32)
    assert last_call() is not weights.quick.report  # type: ignore[union-attr]
    assert_equal_bits(out, product_int32(a, b))
    assert pack_b(b.astype(np.float32), device="cpu", precision="int8").quick is None
    assert pack_b(b, device="emulated").quick is None
