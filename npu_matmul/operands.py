"""NumPy's rules for the operands and the result of a product, before anything is computed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.exceptions import DTypePromotionError
from numpy.typing import DTypeLike, NDArray

from npu_matmul.precision import EXACT, PRECISIONS, Precision

EXACT_RESULTS = (np.dtype(np.int8), np.dtype(np.int32))
FLOATS = tuple(np.dtype(t) for t in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16))

OPERANDS = frozenset((np.dtype(np.int8), *FLOATS))


def as_operand(name: str, given: Any) -> NDArray[Any]:
    """What was given as a plain array of a supported element type; raises TypeError otherwise."""
    if isinstance(given, np.ma.MaskedArray):
        raise TypeError(
            f"npu_matmul: operand {name} is a masked array, whose mask would be lost; pass "
            f"{name}.filled(0), or the value that masked elements are to count as"
        )
    array = np.asarray(given)
    check_operand(name, array.dtype)
    return array


def check_operand(name: str, dtype: np.dtype[Any]) -> None:
    """Raise TypeError, with the cast that cures it, unless ``dtype`` is supported."""
    if dtype in OPERANDS or dtype.newbyteorder("=") in OPERANDS:
        return
    if dtype.kind in "iub":
        cure = (
            f"if its values lie in [-128, 127], pass {name}.astype(np.int8), else "
            f"{name}.astype(np.float32)"
        )
    elif np.issubdtype(dtype, np.floating):
        cure = f"pass {name}.astype(np.float32)"
    else:
        cure = "pass a real matrix"
    raise TypeError(
        f"npu_matmul: operand {name} is {dtype}; supported are int8, "
        "float16, bfloat16, float32 and "
        f"float64: {cure}"
    )


def choose_precision(a: np.dtype[Any], b: np.dtype[Any], precision: str | None) -> Precision:
    """How operands of these types are multiplied: int8 with int8 exactly, floats as ``precision``
    says ("bf16" unless given)."""
    if a == np.int8 and b == np.int8:
        if precision is None:
            return EXACT
        raise ValueError(
            f"precision={precision!r} applies to float operands; int8 "
            "products are exact: leave it out"
        )
    check_precision(precision)
    return PRECISIONS[precision or "bf16"]


def check_precision(name: str | None) -> None:
    """Raise ValueError where there is no precision of that name; None stands for the default."""
    if name is not None and name not in PRECISIONS:
        raise ValueError(f"there is no precision {name!r}; known are: {', '.join(PRECISIONS)}")


def result_type(
    a: np.dtype[Any], b: np.dtype[Any], dtype: DTypeLike | None, precision: Precision
) -> np.dtype[Any]:
    """The element type of the result: what ``np.result_type`` gives, or ``dtype``.

    >>> result_type(np.dtype(np.int8), np.dtype(np.float16), None, PRECISIONS["bf16"])
    dtype('float16')
    """
    if precision is EXACT:
        result = _native(np.int8 if dtype is None else dtype)
        if result not in EXACT_RESULTS:
            raise TypeError(
                f"npu_matmul: dtype={result}: int8 products give np.int8 "
                "(saturated) or np.int32 (exact)"
            )
        return result
    try:
        result = np.result_type(a, b) if dtype is None else _native(dtype)
    except DTypePromotionError:
        raise TypeError(
            f"npu_matmul: {a} with {b}: NumPy knows no common type of the two; say which the "
            "result is to have, as with dtype=np.float32"
        ) from None
    if dtype is None and result not in FLOATS:
        raise TypeError(
            "npu_matmul: A and B are both int8, but B is packed for products of floats; say which "
            "type the result is to have, as with dtype=np.float32, or pack it exactly: pack_b(B)"
        )
    if result not in FLOATS:
        names = ", ".join(t.name for t in FLOATS)
        raise TypeError(f"npu_matmul: dtype={result}: products of floats give one of {names}")
    return result


def _native(dtype: DTypeLike) -> np.dtype[Any]:
    """In the byte order of this machine. A type that has it stays the object it is: the short way
    for small products compares objects."""
    given = np.dtype(dtype)
    native: np.dtype[Any] = given if given.isnative else given.newbyteorder("=")
    return native


def result_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that ``np.matmul`` gives; where it refuses, this does, in its own words.

    >>> result_shape((5, 1, 2, 3), (4, 3, 7)), result_shape((3,), (3, 7))
    ((5, 4, 2, 7), (7,))
    """
    if len(a) == len(b) == 2 and a[1] == b[0]:
        return a[0], b[1]
    try:
        if not a or not b or a[-1] != b[-2 if len(b) > 1 else 0]:
            raise ValueError
        stack = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        np.matmul(_one_byte(a), _one_byte(b))
        raise AssertionError("np.matmul accepts shapes that were refused") from None
    return stack + a[-2:-1] + (b[-1:] if len(b) > 1 else ())


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless ``out`` can take the result; its byte order may be any."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"npu_matmul: out must be an array, not {type(out).__name__}")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError(
            "npu_matmul: out is a masked array, whose mask would hide results; pass out.data"
        )
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(
            f"npu_matmul: out is {out.dtype}, the result is {dtype}; pass an out of that type, or "
            f"dtype={out.dtype.name} where that is a possible result"
        )
    if out.shape != shape:
        raise ValueError(
            f"npu_matmul: out has shape {out.shape}; the result has {shape}: pass an out of that "
            "shape, or none, which makes one"
        )
    if not out.flags.writeable:
        raise ValueError("npu_matmul: out is read-only; pass an array that can be written, or none")


def _one_byte(shape: tuple[int, ...]) -> NDArray[np.int8]:
    """An array of any shape that takes one byte: for asking NumPy what it thinks of a shape."""
    return np.broadcast_to(np.zeros((), np.int8), shape)
