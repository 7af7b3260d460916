"""Memory by its address, in compiled code: one compiled form then serves arrays of every layout."""

from __future__ import annotations

from ctypes import c_void_p
from math import prod
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

LINE_BYTES = 64  # of the cache
_DATA = object.__basicsize__  # bytes of what all objects begin with


def address(array: NDArray[Any]) -> int:
    """Where the first element of an array lies; the array must be kept alive while it is used.

    Read from the array object, whose layout is part of NumPy's binary interface (PyArrayObject:
    ``PyObject_HEAD char *data``). ``array.ctypes.data`` takes a microsecond, of which a product
    would pay several.
    """
    return c_void_p.from_address(id(array) + _DATA).value or 0


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As ``np.empty``, from a cache line's start on: no vector of it crosses two lines. Writing
    takes longer where they do; NumPy aligns large arrays to 16 bytes only.

    >>> x = aligned_empty((3, 5), np.dtype(np.float32))
    >>> x.shape, address(x) % 64
    ((3, 5), 0)
    """
    count = prod(shape)
    raw = np.empty(count + LINE_BYTES // dtype.itemsize, dtype)
    start = -address(raw) % LINE_BYTES // dtype.itemsize
    return raw[start : start + count].reshape(shape)


@intrinsic
def pointer(typingctx, address, element):  # type: ignore[no-untyped-def]
    """The int64 ``address`` as a pointer to elements of a type: ``pointer(a, np.int8)[0]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(element.dtype)(types.int64, element), codegen


@intrinsic(prefer_literal=True)
def stack_words(typingctx, count):  # type: ignore[no-untyped-def]
    """The address of ``count`` words on the stack, valid until the function that asks returns; the
    count must be a constant."""
    words = count.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.ArrayType(ir.IntType(32), words)
        return builder.ptrtoint(cgutils.alloca_once(builder, kind), ir.IntType(64))

    return types.int64(count), codegen
