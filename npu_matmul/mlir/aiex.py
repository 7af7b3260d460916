"""The ``aiex`` dialect: what a runtime sequence asks of the shim DMAs and of core memory."""

from __future__ import annotations

from xdsl.dialects.builtin import (
    I32,
    I64,
    BoolAttr,
    DenseArrayBase,
    IndexType,
    IntegerAttr,
    IntegerType,
    MemRefType,
    Signedness,
    SymbolRefAttr,
)
from xdsl.dialects.utils.dynamic_index_list import DynamicIndexList
from xdsl.ir import Dialect
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    var_operand_def,
)
from xdsl.utils.exceptions import VerifyException


@irdl_op_definition
class DmaMemcpyNdOp(IRDLOperation):
    """One task of a shim DMA channel; sizes and strides are in elements, outermost first."""

    name = "aiex.npu.dma_memcpy_nd"

    memref = operand_def(MemRefType)
    offsets = var_operand_def(IndexType())
    sizes = var_operand_def(IndexType())
    strides = var_operand_def(IndexType())
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

    def verify_(self) -> None:
        if self.offsets or self.sizes or self.strides:
            raise VerifyException("offsets, sizes and strides of a transfer must be constants")
        lengths = {len(p) for p in (self.static_offsets, self.static_sizes, self.static_strides)}
        if lengths != {4}:
            raise VerifyException("a transfer has four offsets, four sizes and four strides")
        if min(self.static_offsets.get_values()) < 0:
            raise VerifyException("offsets must not be negative")


@irdl_op_definition
class DmaWaitOp(IRDLOperation):
    """Waits for one token of the channel of the object FIFO ``symbol``."""

    name = "aiex.npu.dma_wait"

    symbol = prop_def(SymbolRefAttr)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "attr-dict"


@irdl_op_definition
class RtpWriteOp(IRDLOperation):
    """Writes one 32-bit runtime parameter into a core's buffer; ``index`` counts 32-bit words."""

    name = "aiex.npu.rtp_write"

    buffer = prop_def(SymbolRefAttr)
    index = prop_def(IntegerAttr.constr(IntegerType(32, Signedness.UNSIGNED)))
    value = prop_def(IntegerAttr[I32])

    assembly_format = "`(` $buffer `,` $index `,` $value `)` attr-dict"


Aiex = Dialect("aiex", [DmaMemcpyNdOp, DmaWaitOp, RtpWriteOp], [])
