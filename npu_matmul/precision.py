"""From the operands of a caller to those of a kernel, and from its sums back to a result.

A :class:`Precision` says which element types a kernel needs, makes them from float (or int8)
matrices, and turns the kernel's accumulators into the result. Products themselves happen
elsewhere.

======== ============================================== =====================================
name     operands                                        result
======== ============================================== =====================================
exact    int8 as it is                                   INT32 sums
bf16     rounded to bf16, nearest even                   f32 sums
bf16x3   two bf16 terms each: x = high + low             Al Bh + Ah Bl + Ah Bh, f32 sums
int8     quantised symmetrically, A by row, B by column  INT32 sums times both scales
======== ============================================== =====================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Operand:
    """A matrix in a kernel's element type. ``scale`` undoes a quantisation: (M, 1) of A, (1, N) of
    B."""

    matrix: NDArray[Any]
    scale: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Precision:
    """How products of one kind are computed: see the module's table.

    ``a`` and ``b`` make a kernel's operands, of shapes (M, terms * K) and (terms * K, N).
    """

    name: str
    element: str
    accumulator: str
    a: Callable[[NDArray[Any]], Operand]
    b: Callable[[NDArray[Any]], Operand]
    terms: int = 1

    @property
    def types(self) -> tuple[str, str, str]:
        """Element types of A, B and C that the kernel must have."""
        return self.element, self.element, self.accumulator


class QuantiseError(ValueError):
    """A matrix with NaN or infinity was to be quantised; the message says where the first one
    is."""


def to_bf16(x: NDArray[Any]) -> NDArray[Any]:
    """``x`` rounded once to bf16, to nearest and ties to even; NaN and infinity stay.

    A float64 rounded to float32 first would be rounded twice. Its float32 is therefore made odd
    where it is inexact ("round to odd", Boldo and Melquiond, 2008), so that the second rounding
    sees it was not a tie.

    >>> x = np.array([1 + 2**-8 + 2**-40])        # just above the middle of two bf16 numbers
    >>> x.astype(np.float32).astype(BF16)[0], to_bf16(x)[0]
    (1, 1.00781)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if x.dtype != np.float64:
            return x.astype(BF16)
        nearest = x.astype(np.float32)
        inexact = (nearest != x) & np.isfinite(nearest)
        inwards = np.nextafter(nearest, np.float32(0))
        truncated = np.where(np.abs(nearest) > np.abs(x), inwards, nearest)
        odd = (truncated.view(np.uint32) | np.uint32(1)).view(np.float32)
        return np.where(inexact, odd, nearest).astype(BF16)


def split_bf16(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """``x`` as the sum of two bf16 terms, high and low; low is 0 where high is not finite.

    >>> high, low = split_bf16(np.array([np.pi]))
    >>> float(abs(high.astype(np.float64) + low.astype(np.float64) - np.pi)[0]) < 2**-16
    True
    """
    high = to_bf16(x)
    wide = x if x.dtype == np.float64 else x.astype(np.float32)
    with np.errstate(invalid="ignore"):
        rest = wide - high.astype(wide.dtype)
    return high, to_bf16(np.where(np.isfinite(high.astype(np.float32)), rest, 0).astype(wide.dtype))


def quantise(x: NDArray[Any], axis: int, name: str) -> Operand:
    """Symmetric int8 with one scale per row (``axis=1``) or column (``axis=0``): largest becomes
    127.

    What is all zero stays exactly zero. Raises :class:`QuantiseError` for NaN and infinity.

    >>> operand = quantise(np.array([[1.0, -2.0], [0.0, 0.0]]), axis=1, name="A")
    >>> operand.matrix.tolist(), operand.scale.ravel().tolist()
    ([[64, -127], [0, 0]], [0.015748031496062992, 1.0])
    """
    wide = x.astype(np.float64)
    if not np.isfinite(wide).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(wide))[0])
        raise QuantiseError(
            f"precision='int8': operand {name} holds {wide[where]} at {where}; "
            "int8 has no such value. Remove it, "
            "or use precision='bf16', which passes it on"
        )
    scale = np.abs(wide).max(axis=axis, keepdims=True, initial=0) / 127
    scale[scale == 0] = 1
    return Operand(np.rint(wide / scale).astype(np.int8), scale)


def dequantise(
    sums: NDArray[np.int32], a_scale: NDArray[np.float64], b_scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """INT32 sums (M, N) of quantised operands times the scales of A's rows and B's columns."""
    return sums * a_scale * b_scale


def _as_is(x: NDArray[Any]) -> Operand:
    return Operand(x)


def _rounded(x: NDArray[Any]) -> Operand:
    return Operand(to_bf16(x))


def _three_terms_of_a(x: NDArray[Any]) -> Operand:
    """[low, high, high] beside [high; low; high] of B: one product of three times the K, in which
    the small terms come first.

    The highs that meet a low are made 0 where they are not finite: a low of 0 must not turn an
    infinity, which the product of both highs passes on, into NaN.
    """
    high, low = split_bf16(x)
    return Operand(np.concatenate([low, _finite(high), high], axis=1))


def _three_terms_of_b(x: NDArray[Any]) -> Operand:
    high, low = split_bf16(x)
    return Operand(np.concatenate([_finite(high), low, high], axis=0))


def _finite(x: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isfinite(x.astype(np.float32)), x, BF16.type(0))


EXACT = Precision("exact", "int8", "int32", _as_is, _as_is)
PRECISIONS = {
    "bf16": Precision("bf16", "bfloat16", "float32", _rounded, _rounded),
    "bf16x3": Precision(
        "bf16x3", "bfloat16", "float32", _three_terms_of_a, _three_terms_of_b, terms=3
    ),
    "int8": Precision(
        "int8",
        "int8",
        "int32",
        lambda x: quantise(x, axis=1, name="A"),
        lambda x: quantise(x, axis=0, name="B"),
    ),
}
