"""The ``aiex`` dialect: what a runtime sequence asks of the shim DMAs and of core memory."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    I32,
    I64,
    BoolAttr,
    DenseArrayBase,
    IntegerAttr,
    IntegerType,
    MemRefType,
    Signedness,
    SymbolRefAttr,
    i32,
    i64,
)
from xdsl.dialects.utils.dynamic_index_list import DynamicIndexList
from xdsl.ir import Dialect, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    var_operand_def,
)
from xdsl.utils.exceptions import VerifyException

from npu_matmul.mlir.constants import constant_of
from npu_matmul.mlir.descriptor_syntax import Amount, AmountType


@irdl_op_definition
class DmaMemcpyNdOp(IRDLOperation):
    """One task of a shim DMA channel; sizes and strides are in elements, outermost first."""

    name = "aiex.npu.dma_memcpy_nd"

    memref = operand_def(MemRefType)
    offsets = var_operand_def(i64)
    sizes = var_operand_def(i64)
    strides = var_operand_def(i64)
    static_offsets = prop_def(DenseArrayBase)
    static_sizes = prop_def(DenseArrayBase)
    static_strides = prop_def(DenseArrayBase)
    metadata = prop_def(SymbolRefAttr)
    id = prop_def(IntegerAttr[I64])
    issue_token = opt_prop_def(BoolAttr)

    custom_directives = (DynamicIndexList,)
    irdl_options = (AttrSizedOperandSegments(as_property=True), ParsePropInAttrDict())
    assembly_format = (
        "`(` $memref `` custom<DynamicIndexList>($offsets, $static_offsets) "
        "`` custom<DynamicIndexList>($sizes, $static_sizes) "
        "`` custom<DynamicIndexList>($strides, $static_strides) `)` attr-dict `:` type($memref)"
    )

    def pattern(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Offsets, sizes and strides; those that are values must be constants."""
        return (
            _numbers(self.static_offsets, self.offsets),
            _numbers(self.static_sizes, self.sizes),
            _numbers(self.static_strides, self.strides),
        )

    def verify_(self) -> None:
        offsets, sizes, strides = self.pattern()
        if {len(offsets), len(sizes), len(strides)} != {4}:
            raise VerifyException("a transfer has four offsets, four sizes and four strides")
        if min(offsets) < 0:
            raise VerifyException("offsets must not be negative")
        lost = [offset for offset, stride in zip(offsets, strides, strict=True) if not stride]
        if any(lost):  # where it begins is the sum of offsets times strides
            raise VerifyException(
                f"an offset of {max(lost)} with a stride of 0 is lost; give it in a loop that has "
                "a stride"
            )


def _numbers(static: DenseArrayBase[IntegerType], values: Sequence[SSAValue]) -> tuple[int, ...]:
    """A list of indices, whose place for a value holds ``DYNAMIC_INDEX``."""
    waiting = iter(values)
    found = []
    for number in static.get_values():
        constant = constant_of(next(waiting)) if number == DYNAMIC_INDEX else int(number)
        if constant is None:
            raise VerifyException("offsets, sizes and strides of a transfer must be constants")
        found.append(constant)
    return tuple(found)


@irdl_op_definition
class DmaWaitOp(IRDLOperation):
    """Waits for one token of the channel of the object FIFO ``symbol``."""

    name = "aiex.npu.dma_wait"

    symbol = prop_def(SymbolRefAttr)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "attr-dict"


@irdl_op_definition
class RtpWriteOp(IRDLOperation):
    """Writes one 32-bit runtime parameter into a core's buffer; ``index`` counts 32-bit words.

    Releases of mlir-aie up to 1.3.4 have the value in the operation, from 1.4 on it is an operand.
    """

    name = "aiex.npu.rtp_write"

    buffer = prop_def(SymbolRefAttr)
    index = prop_def(IntegerAttr.constr(IntegerType(32, Signedness.UNSIGNED)))
    value = opt_prop_def(IntegerAttr[I32])
    operand = opt_operand_def(i32)

    custom_directives = (Amount, AmountType)
    assembly_format = (
        "`(` $buffer `,` $index custom<Amount>($value, $operand) `)` attr-dict "
        "custom<AmountType>(ref($operand))"
    )

    def verify_(self) -> None:
        if self.value is None and self.operand is None:
            raise VerifyException("which value to write is missing: (@buffer, index, value)")
        self.written()

    def written(self) -> int:
        """The value, which must be a constant where it is an operand."""
        if self.operand is None:
            assert self.value is not None
            return self.value.value.data
        constant = constant_of(self.operand)
        if constant is None:
            raise VerifyException("the value of a runtime parameter must be a constant")
        return constant


Aiex = Dialect("aiex", [DmaMemcpyNdOp, DmaWaitOp, RtpWriteOp], [])
