"""Memory by its address, in compiled code: one compiled form then serves arrays of every layout."""

from __future__ import annotations

from ctypes import c_void_p
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_DATA = object.__basicsize__  # bytes of what all objects begin with


def address(array: NDArray[Any]) -> int:
    """Where the first element of an array lies; the array must be kept alive while it is used.

    Read from the array object, whose layout is part of NumPy's binary interface (PyArrayObject:
    ``PyObject_HEAD char *data``). ``array.ctypes.data`` takes a microsecond, of which a product
    would pay several.
    """
    return c_void_p.from_address(id(array) + _DATA).value or 0


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
