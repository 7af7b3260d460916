"""From the operands of a caller to those of a kernel, and from its sums back to a result.

A :class:`Precision` says which element types a kernel needs and makes an :class:`Operand` of a
float (or int8) matrix: the matrix as it was given and how it is to be converted, which happens
where it is read next, on packing it. Products themselves happen elsewhere.

======== ============================================== =====================================
name     operands                                        result
======== ============================================== =====================================
exact    int8 as it is                                   INT32 sums
bf16     rounded to bf16, nearest even                   f32 sums
bf16x3   two bf16 terms each: x = high + low             Al Bh + Ah Bl + Ah Bh, f32 sums
int8     quantised symmetrically, A by row, B by column  INT32 sums times both scales
======== ============================================== =====================================

Quantising and scaling back is float32 arithmetic, as ``host.convert`` states it; float64 for
float64 operands and for those whose numbers would lead float32 out of its range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npu_matmul.host.cached import cached_property
from npu_matmul.host.convert import (
    TERMS_OF_A,
    TERMS_OF_B,
    convert,
    in_columns,
    magnitudes,
    plain_scales,
    stored_as,
    type_name,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
Scales = tuple[NDArray[Any], NDArray[Any]]  # of rows and columns, both flat and of one float type
MOST_QUANTISED = (2**31 - 1) // 127**2  # K up to which INT32 holds all sums: 133,144
SMALLEST_SCALE = np.finfo(np.float64).smallest_normal  # of float64: below, 127 / x can overflow


@dataclass(frozen=True)
class Operand:
    """A matrix as given, and how it becomes one of a kernel's element type.

    ``read_as`` is the type it is read in, ``write_as`` the one it is written in, or three that
    stand side by side along K, which is ``axis``. A quantised one has a ``scale`` that undoes it,
    (M, 1) of A or (1, N) of B, and the ``inverse`` of each row or column.
    """

    source: NDArray[Any]
    read_as: str
    write_as: str
    axis: int
    scale: NDArray[Any] | None = None
    inverse: NDArray[Any] | None = None

    @property
    def terms(self) -> int:
        return self.write_as.count("|") + 1

    @property
    def factors(self) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
        """What rows and columns are multiplied by when they are converted."""
        return (self.inverse, None) if self.axis == 1 else (None, self.inverse)

    def transposed(self) -> Operand:
        """The same with rows and columns exchanged."""
        scale = None if self.scale is None else self.scale.T
        return replace(self, source=self.source.T, axis=1 - self.axis, scale=scale)

    @cached_property
    def matrix(self) -> NDArray[Any]:
        """The converted matrix, (M, terms * K) of A or (terms * K, N) of B; made when asked for.
        A B that is the transpose of rows stays one."""
        if self.write_as == type_name(self.source.dtype) and self.inverse is None:
            return self.source
        if self.axis == 0 and in_columns(self.source):
            matrix: NDArray[Any] = self.transposed().matrix.T
            return matrix
        rows, columns = shape = self.source.shape
        times = (1, self.terms) if self.axis == 1 else (self.terms, 1)
        whole = np.empty((rows * times[0], columns * times[1]), stored_as(self.write_as))
        first, apart = whole[:rows, :columns], shape[self.axis] * whole.strides[self.axis]
        convert(self.source, first, self.read_as, self.write_as, *self.factors, apart)
        return whole


@dataclass(frozen=True)
class Precision:
    """How products of one kind are computed: see the module's table.

    ``a`` and ``b`` make operands of matrices (M, K) and (K, N).
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
    """An operand with NaN or infinity was to be quantised; the message says where in ``x`` the
    first one is."""

    def __init__(self, x: NDArray[Any], name: str) -> None:
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        shown = where if x.ndim != 1 else where[0]
        super().__init__(
            f"precision='int8': operand {name} holds {x[where]} at {shown}; int8 has no such "
            "value. Remove it, or use precision='bf16', which passes it on"
        )
        self.name = name


def to_bf16(x: NDArray[Any]) -> NDArray[Any]:
    """``x`` rounded once to bf16, to nearest and ties to even; NaN and infinity stay.

    >>> x = np.array([1 + 2**-8 + 2**-40])        # just above the middle of two bf16 numbers
    >>> x.astype(np.float32).astype(BF16)[0], to_bf16(x)[0]
    (1, 1.00781)
    """
    return _rounded(_rows(x), 1).matrix.reshape(x.shape)


def split_bf16(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """``x`` as the sum of two bf16 terms, high and low; low is 0 where high is not finite.

    >>> high, low = split_bf16(np.array([np.pi]))
    >>> float(abs(high.astype(np.float64) + low.astype(np.float64) - np.pi)[0]) < 2**-16
    True
    """
    high, low = np.split(_rounded(_rows(x), 0, "bfloat16|bfloat16 low").matrix, 2)
    return high.reshape(x.shape), low.reshape(x.shape)


def quantise(x: NDArray[Any], axis: int, name: str) -> Operand:
    """Symmetric int8 with one scale per row (``axis=1``) or column (``axis=0``): largest becomes
    127.

    What is all zero stays exactly zero. Raises :class:`QuantiseError` for NaN and infinity,
    ValueError for a K whose INT32 sums could overflow.

    >>> operand = quantise(np.array([[1.0, -2.0], [0.0, 0.0]]), axis=1, name="A")
    >>> operand.matrix.tolist(), operand.scale.ravel().tolist()
    ([[64, -127], [0, 0]], [0.015748031496062992, 1.0])
    """
    if x.shape[axis] > MOST_QUANTISED:
        raise ValueError(
            f"precision='int8': K is {x.shape[axis]:,}; INT32 holds the sums of up to "
            f"{MOST_QUANTISED:,} products. Use precision='bf16', or add the products of parts of K"
        )
    largest = magnitudes(x, axis)
    scale, inverse = np.empty_like(largest), np.empty_like(largest)
    if largest.dtype == np.float64 or not plain_scales(largest.view(np.uint32), scale, inverse):
        if not np.isfinite(largest).all():
            raise QuantiseError(x, name)
        scale, inverse = _scales_in_float64(largest.astype(np.float64))
        read_as = "float64"
    else:
        read_as = _read_as(x)
    return Operand(x, read_as, "int8", axis, np.expand_dims(scale, axis), inverse)


def _scales_in_float64(
    largest: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with np.errstate(divide="ignore", over="ignore"):
        scale, inverse = largest / 127, 127 / largest
    small = scale < SMALLEST_SCALE
    scale[small], inverse[small] = SMALLEST_SCALE, 1 / SMALLEST_SCALE
    scale[largest == 0] = inverse[largest == 0] = 1
    return scale, inverse


def scales_of(a_scale: NDArray[Any], b_scale: NDArray[Any]) -> Scales:
    """Both scales, flat and of the type that sums are scaled back in: float32 if both are."""
    kind = np.result_type(a_scale, b_scale)
    a, b = (np.ascontiguousarray(scale.reshape(-1), kind) for scale in (a_scale, b_scale))
    return a, b


def finish(sums: NDArray[Any], out: NDArray[Any], scales: Scales | None) -> None:
    """Accumulators (M, N) as the result: times the scales of rows and columns if there are any,
    else INT32 clipped to int8 if that is the result, else as they are, in the result's type.

    >>> out = np.empty((1, 2), np.float32)
    >>> scales = scales_of(np.array([[0.5]], np.float32), np.array([[2, 4]], np.float32))
    >>> finish(np.array([[3, -5]], np.int32), out, scales)
    >>> out.tolist()
    [[3.0, -10.0]]
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of floats that become float16
        if scales is None:
            convert(sums, out)
        else:
            convert(sums, out, "int32", type_name(scales[0].dtype), *scales)


def _rows(x: NDArray[Any]) -> NDArray[Any]:
    return x if x.ndim == 2 else x.reshape(1, -1)


def converted(matrix: NDArray[Any], scale: NDArray[Any] | None = None) -> Operand:
    """A matrix that is in a kernel's element type already; ``scale`` is what undoes it."""
    name = type_name(matrix.dtype)
    return Operand(matrix, name, name, 0, scale)


def _as_is(x: NDArray[Any]) -> Operand:
    return converted(x)


def _rounded(x: NDArray[Any], axis: int, terms: str = "bfloat16") -> Operand:
    return Operand(x, _read_as(x), terms, axis)


def _read_as(x: NDArray[Any]) -> str:
    return "float32" if x.dtype == np.int8 else type_name(x.dtype)


EXACT = Precision("exact", "int8", "int32", _as_is, _as_is)
PRECISIONS = {
    "bf16": Precision(
        "bf16", "bfloat16", "float32", lambda x: _rounded(x, 1), lambda x: _rounded(x, 0)
    ),
    "bf16x3": Precision(
        "bf16x3",
        "bfloat16",
        "float32",
        lambda x: _rounded(x, 1, TERMS_OF_A),
        lambda x: _rounded(x, 0, TERMS_OF_B),
        terms=3,
    ),
    "int8": Precision(
        "int8",
        "int8",
        "int32",
        lambda x: quantise(x, axis=1, name="A"),
        lambda x: quantise(x, axis=0, name="B"),
    ),
}
