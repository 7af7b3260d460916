"""Memory by its address, in compiled code: one compiled form then serves arrays of every layout."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


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
