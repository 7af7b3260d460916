"""What the encoder computes between its products: LayerNorm, softmax, GELU, sums; on the host.

Comes in and goes out: float32 matrices (rows, columns), C-contiguous. Each function makes one pass
over the rows, compiled and vectorised, a part of the rows per thread; what a row becomes does not
depend on the others, nor on how many threads there are.

Errors, measured in ``tests/test_whisper_elementwise.py`` against float64:

========== =============================================================================
gelu       at most 4e-7 max(1, |x|), as (1 + erf) / 2 itself is at most 4e-7 off
softmax    at most 1e-6 relative; what lies 87 or more below the row's largest becomes 0
layer_norm at most 4e-6 max(1, |y|), for rows whose deviation is not small beside their mean
========== =============================================================================
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.compiled import DONE, Task
from npu_matmul.host.pointers import address, pointer
from npu_matmul.host.threads import in_parts
from npu_matmul.host.vectors import float_of_bits

Floats = NDArray[np.float32]

EPSILON = np.float32(1e-5)  # of LayerNorm: torch.nn.LayerNorm's default, which Whisper keeps
# Seconds per element of one core, about, as measured on a Zen 4 at (1500, 512) and (1500, 1500).
GELU_S, SOFTMAX_S, PASSING_S = 0.5e-9, 0.4e-9, 0.1e-9

# Phi(y) = (1 + erf(y / sqrt 2)) / 2 = 1/2 + y P(2 (y / PHI_END)**2 - 1) up to PHI_END, from where
# it is 1 in float32. P is a least squares fit of degree 14 at 400 Chebyshev nodes, weighted by y,
# of Phi - 1/2 made larger by 1.3e-7 of itself: both ends reach 0 and 1, where it is cut.
PHI_END = np.float32(5.5)
PHI = tuple(
    np.float32(coefficient)
    for coefficient in (
        5.1339855e-4, -1.3566219e-3, 1.1041306e-3, -1.2660305e-3, 4.1343626e-3, -7.6326919e-3,
        1.0532468e-2, -1.4694272e-2, 2.0267637e-2, -2.6106458e-2, 3.2084804e-2, -3.8787939e-2,
        4.7736827e-2, -6.4172462e-2, 1.2855196e-1,
    )
)  # fmt: skip
PHI_ARGUMENT = np.float32(2 / 5.5**2)

# exp(x) = 2**n exp(f), n = rint(x / ln 2), |f| <= ln(2) / 2; exp(f) by its Taylor series. ln 2 is
# taken in two parts (W. J. Cody and W. Waite, 1980), the first so short that n times it is exact.
LOG2_E = np.float32(math.log2(math.e))
LN2_HIGH = np.float32(0.693145751953125)  # 16 bits
LN2_LOW = np.float32(math.log(2) - 0.693145751953125)
EXP = tuple(np.float32(1 / math.factorial(k)) for k in (6, 5, 4, 3, 2, 1, 0))
EXP_LEAST = np.float32(-87.0)  # exp of it is above float32's smallest normal number

ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


def layer_norm(x: Floats, weight: Floats, bias: Floats, out: Floats | None = None) -> Floats:
    """Rows with mean 0 and deviation 1, times ``weight``, plus ``bias``; both (columns,). In
    ``out``, where that is given.

    J. L. Ba, J. R. Kiros, G. E. Hinton, 2016, with the biased variance and 1e-5 added to it.

    >>> x, ones, zeros = np.float32([[1, 3]]), np.ones(2, np.float32), np.zeros(2, np.float32)
    >>> layer_norm(x, ones, zeros).round(3).tolist()
    [[-1.0, 1.0]]
    """
    out = np.empty_like(x) if out is None else out
    _by_rows(_layer_norm, (x, out), (weight, bias), 2 * PASSING_S)
    return out


def softmax(x: Floats, scale: float = 1.0) -> Floats:
    """``x`` itself, in place: exp(scale x) of each row divided by its sum. ``scale`` is positive.

    A row that holds NaN or +infinity becomes NaN.

    >>> softmax(np.float32([[0, 0, -200]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    bits = int(np.float32(scale).view(np.uint32))
    _by_rows(_softmax, (x,), (), SOFTMAX_S, bits)
    return x


def gelu(x: Floats, bias: Floats) -> Floats:
    """``x`` itself, in place: y/2 (1 + erf(y / sqrt 2)) of y = x + bias; ``bias`` is (columns,).

    The exact form of D. Hendrycks and K. Gimpel, 2016: not the one with tanh.

    >>> gelu(np.float32([[1, -1, 0]]), np.zeros(3, np.float32)).round(4).tolist()
    [[0.8413000106811523, -0.15870000422000885, 0.0]]
    """
    _by_rows(_gelu, (x,), (bias,), GELU_S)
    return x


def add(x: Floats, y: Floats, bias: Floats) -> Floats:
    """``x`` itself, in place: plus ``y``, plus ``bias`` in each row."""
    _by_rows(_add, (x, y), (bias,), PASSING_S)
    return x


def add_bias(x: Floats, bias: Floats) -> Floats:
    """``x`` itself, in place: plus ``bias`` in each row."""
    _by_rows(_add_bias, (x,), (bias,), PASSING_S)
    return x


def _by_rows(
    task: Task,
    matrices: tuple[Floats, ...],
    vectors: tuple[Floats, ...],
    element_s: float,
    *numbers: int,
) -> None:
    """``task`` over all rows, a part per thread; an element takes ``element_s`` on one core. The
    vectors have a number for each column; ``numbers`` are what else the task reads."""
    rows, columns = matrices[0].shape
    arrays = *matrices, *vectors
    assert all(x.shape == (rows, columns) for x in matrices)
    assert all(x.shape == (columns,) for x in vectors)
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in arrays)
    table = columns, *map(address, arrays), *numbers
    in_parts(task, table, rows, 1, matrices[0].size * element_s)


# Compiled: tasks, whose tables have the number of columns, then addresses of what the loops take.
# "contract" allows fused multiply-add; "reassoc" sums in vector lanes. Neither may assume that
# there are no NaNs. Constants must be float32: a Python float would make all of it float64.

_contract = numba.njit(nogil=True, fastmath={"contract"})
_reassoc = numba.njit(nogil=True, fastmath={"contract", "reassoc", "nsz"})


@_contract
def _rows(table, which, first, last):
    t = pointer(table, np.int64)
    start = t[which] + first * t[0] * 4
    return numba.carray(pointer(start, np.float32), (last - first, t[0]))


@_contract
def _row(table, which):
    t = pointer(table, np.int64)
    return numba.carray(pointer(t[which], np.float32), t[0])


@_contract
def _phi(y):
    """The normal distribution function, as PHI approximates it."""
    clipped = max(min(y, PHI_END), -PHI_END)
    u = clipped * clipped * PHI_ARGUMENT - ONE
    p = ZERO
    for coefficient in PHI:
        p = p * u + coefficient
    return min(max(clipped * p + HALF, ZERO), ONE)


@_contract
def _exp(x):
    """Of x <= 0; 0 below EXP_LEAST, where the exponent below would leave float32."""
    n = np.rint(x * LOG2_E)
    f = x - n * LN2_HIGH - n * LN2_LOW
    p = ZERO
    for coefficient in EXP:
        p = p * f + coefficient
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return ZERO if x < EXP_LEAST else p * power


@_contract
def _ordered(bits):
    """The bits of a float as an integer that is ordered as floats are, NaN above infinity; and
    back. Integers, because LLVM does not vectorise a maximum of floats that may be NaN."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@_contract
def _gelu_loop(x, bias):
    for i in range(x.shape[0]):
        row = x[i]
        for j in range(bias.size):
            y = row[j] + bias[j]
            row[j] = y * _phi(y)


@Task
def _gelu(table, first, last):
    _gelu_loop(_rows(table, 1, first, last), _row(table, 2))
    return DONE


@_reassoc
def _softmax_loop(x, scale):
    for i in range(x.shape[0]):
        row = x[i]
        bits = row.view(np.int32)
        largest = np.int32(-0x80000000)
        for j in range(bits.size):
            largest = max(largest, _ordered(bits[j]))
        top = np.int32(_ordered(largest)).view(np.float32)
        total = ZERO
        for j in range(row.size):
            power = _exp((row[j] - top) * scale)
            row[j] = power
            total += power
        share = ONE / total
        for j in range(row.size):
            row[j] *= share


@Task
def _softmax(table, first, last):
    scale = float_of_bits(np.uint32(pointer(table, np.int64)[2]))
    _softmax_loop(_rows(table, 1, first, last), scale)
    return DONE


@_reassoc
def _layer_norm_loop(x, out, weight, bias):
    share = ONE / np.float32(x.shape[1])
    for i in range(x.shape[0]):
        row, result = x[i], out[i]
        total = ZERO
        for j in range(row.size):
            total += row[j]
        mean = total * share
        squares = ZERO
        for j in range(row.size):
            distance = row[j] - mean
            squares += distance * distance
        factor = ONE / np.sqrt(squares * share + EPSILON)
        for j in range(row.size):
            result[j] = (row[j] - mean) * factor * weight[j] + bias[j]


@Task
def _layer_norm(table, first, last):
    _layer_norm_loop(
        _rows(table, 1, first, last), _rows(table, 2, first, last), _row(table, 3), _row(table, 4)
    )
    return DONE


@_contract
def _add_loop(x, y, bias):
    for i in range(x.shape[0]):
        row, other = x[i], y[i]
        for j in range(bias.size):
            row[j] += other[j] + bias[j]


@Task
def _add(table, first, last):
    _add_loop(_rows(table, 1, first, last), _rows(table, 2, first, last), _row(table, 3))
    return DONE


@_contract
def _add_bias_loop(x, bias):
    for i in range(x.shape[0]):
        row = x[i]
        for j in range(bias.size):
            row[j] += bias[j]


@Task
def _add_bias(table, first, last):
    _add_bias_loop(_rows(table, 1, first, last), _row(table, 2))
    return DONE
