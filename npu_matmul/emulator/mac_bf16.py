"""The bf16 multiply-accumulate of the AIE2, bit for bit: C = A @ B and C += A @ B on blocked tiles.

One instruction adds eight products to every fp32 sum. In this step each lane

1. multiplies exactly: the 8-bit mantissas, at exponent ea + eb, which stays even if the product of
   the mantissas is 2 or more; a subnormal operand has exponent -126 and no leading one;
2. takes as E the greatest exponent of the nonzero products and, unless it is zero, the sum;
3. rounds each product, and the sum, to a multiple of 2**(E - 23), half to even;
4. adds these exactly and rounds the total to fp32, half to even. A total of zero, or one that stays
   below the least normal number, is +0; one beyond the greatest is infinite.

So it is neither a chain of fused multiply-adds nor an exact sum rounded once. Infinities and NaN
are those of IEEE 754. The core's rounding mode has no part in it.
"""

from __future__ import annotations

import numba
import numpy as np

from npu_matmul.emulator.blocks import Blocks, Model, of_blocks
from npu_matmul.kernel import Mmul, TileShape

STEP = 8  # products a step
# All of a step is exact in float64. Step 3 is made by adding ROUNDER * 2**E and taking it away
# again: the sum of the two lies between 2**(E + 29) and 2**(E + 30), where a float64's last bit is
# 2**(E - 23), because a term is less than 2**(E + 2).
ROUNDER = 1.5 * 2.0**29
LEAST_NORMAL = 2.0**-126
# Totals from here on round up to it, when rounded to 24 bits.
LEAST_TOTAL = LEAST_NORMAL - 2.0**-151
EXPONENT_BITS = np.int64(0x7FF << 52)  # of a float64


def model(tile: TileShape, block: Mmul, accumulate: bool) -> Model:
    """What a C function does to flat tiles."""
    return of_blocks(_product, tile, block, accumulate)


def _product(a: Blocks, b: Blocks, c: Blocks, accumulate: bool) -> None:
    matmul_bf16(a.view(np.uint16), b.view(np.uint16), c, accumulate)


@numba.njit(cache=True, nogil=True)
def matmul_bf16(a, b, c, accumulate):
    """A and B as the bits of their bf16 blocks (uint16), C as float32 blocks."""
    a_values, a_powers = _values(a)
    b_values, b_powers = _values(b)
    sums = np.zeros((a_values.shape[0], b_values.shape[1]), np.float32)
    if accumulate:
        _copy(c, sums, True)
    for start in range(0, b_values.shape[0], STEP):
        for i in range(sums.shape[0]):
            for j in range(sums.shape[1]):  # as many lanes at once as the host's vectors have
                total = np.float64(sums[i, j])
                power = _power(total)
                for k in range(start, start + STEP):
                    power = max(power, a_powers[i, k] * b_powers[k, j])
                rounder = ROUNDER * power
                total = (total + rounder) - rounder
                for k in range(start, start + STEP):
                    total += (a_values[i, k] * b_values[k, j] + rounder) - rounder
                sums[i, j] = np.float32(0) if abs(total) < LEAST_TOTAL else np.float32(total)
    _copy(c, sums, False)


@numba.njit(cache=True, nogil=True)
def _copy(blocks, rows, into_rows):
    """Blocks into plain rows, or back."""
    down, across, height, width = blocks.shape
    for i in range(down):
        for y in range(height):
            for j in range(across):
                for x in range(width):
                    if into_rows:
                        rows[i * height + y, j * width + x] = blocks[i, j, y, x]
                    else:
                        blocks[i, j, y, x] = rows[i * height + y, j * width + x]


@numba.njit(cache=True, nogil=True)
def _values(blocks):
    """Blocks of bf16 bits as rows of float64, and the ``_power`` of each value."""
    down, across, height, width = blocks.shape
    bits = np.empty((down * height, across * width), np.uint32)
    _copy(blocks, bits, True)
    values, powers = np.empty(bits.shape), np.empty(bits.shape)
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            values[i, j] = np.uint32(bits[i, j] << 16).view(np.float32)
            powers[i, j] = _power(values[i, j])
    return values, powers


@numba.njit(cache=True, nogil=True)
def _power(value):
    """2**exponent of a value of bf16 or fp32; 0 for what has no part in E: zeros and specials."""
    power = np.int64(np.float64(value).view(np.int64) & EXPONENT_BITS).view(np.float64)
    if value == 0 or power == np.inf:
        return 0.0
    return max(power, LEAST_NORMAL)
