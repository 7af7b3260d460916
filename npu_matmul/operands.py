"""NumPy's rules for the operands and the result of a product, before anything is computed."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

RESULT_TYPES = (np.dtype(np.int8), np.dtype(np.int32))


class Shaped(Protocol):
    """What is asked of an operand here: an array's shape and dtype."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


def check_operand(name: str, dtype: np.dtype[Any]) -> None:
    """Raise TypeError, with the cast that cures it, unless ``dtype`` is supported."""
    if dtype == np.int8:
        return
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        cure = f"if its values lie in [-128, 127], pass {name}.astype(np.int8)"
    else:
        cure = (
            f"quantise it, for example np.clip(np.rint({name} / scale), -128, 127).astype(np.int8)"
        )
    raise TypeError(f"npu_matmul: operand {name} is {dtype}; both operands must be int8: {cure}")


def check_precision(precision: str | None) -> None:
    if precision is not None:
        raise ValueError(
            f"precision={precision!r} applies to float operands; int8 "
            "products are exact: leave it out"
        )


def result_type(a: Shaped, b: Shaped, dtype: DTypeLike | None) -> np.dtype[Any]:
    """The element type of the result: int8 unless int32 is asked for."""
    check_operand("A", a.dtype)
    check_operand("B", b.dtype)
    result = np.dtype(np.int8 if dtype is None else dtype)
    if result not in RESULT_TYPES:
        raise TypeError(
            f"npu_matmul: dtype={result}: int8 products give np.int8 "
            "(saturated) or np.int32 (exact)"
        )
    return result


def result_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that ``np.matmul`` gives; where it refuses, this does, in its own words.

    >>> result_shape((5, 1, 2, 3), (4, 3, 7)), result_shape((3,), (3, 7))
    ((5, 4, 2, 7), (7,))
    """
    try:
        if not a or not b or a[-1] != b[-2 if len(b) > 1 else 0]:
            raise ValueError
        stack = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        np.matmul(_one_byte(a), _one_byte(b))
        raise AssertionError("np.matmul accepts shapes that were refused") from None
    return stack + a[-2:-1] + (b[-1:] if len(b) > 1 else ())


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless ``out`` can take the result."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"npu_matmul: out must be an array, not {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(
            f"npu_matmul: out is {out.dtype}, the result is {dtype}; an "
            "int32 out goes with dtype=np.int32, "
            "an int8 out with none"
        )
    if out.shape != shape:
        raise ValueError(f"npu_matmul: out has shape {out.shape}; the result has {shape}")
    if not out.flags.writeable:
        raise ValueError("npu_matmul: out is read-only")


def _one_byte(shape: tuple[int, ...]) -> NDArray[np.int8]:
    """An array of any shape that takes one byte: for asking NumPy what it thinks of a shape."""
    return np.broadcast_to(np.zeros((), np.int8), shape)
