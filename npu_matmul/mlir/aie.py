"""The ``aie`` dialect, as far as object-FIFO designs use it (syntax of mlir-aie from April to
August 2026).

Names of operations and properties are mlir-aie's own, so that what is printed here is what the
standard toolchain reads. Anything defined neither here nor in :mod:`npu_matmul.mlir.aie_lowered`
is refused by the parser.
"""

from __future__ import annotations

from xdsl.dialects.builtin import (
    I32,
    I64,
    ArrayAttr,
    DenseIntOrFPElementsAttr,
    IndexType,
    IntegerAttr,
    MemRefType,
    StringAttr,
    SymbolNameConstraint,
    SymbolRefAttr,
)
from xdsl.dialects.utils import EnumAttribute
from xdsl.ir import (
    Dialect,
    Operation,
    ParametrizedAttribute,
    SpacedOpaqueSyntaxAttribute,
    TypeAttribute,
)
from xdsl.irdl import (
    IRDLOperation,
    MessageConstraint,
    ParsePropInAttrDict,
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.traits import (
    IsTerminator,
    NoTerminator,
    OptionalSymbolOpInterface,
    SymbolOpInterface,
    SymbolTable,
)
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.str_enum import StrEnum

from npu_matmul.mlir.directives import (
    ArgumentRegion,
    Consumers,
    DimAttr,
    InitialValue,
    ProducerDims,
)


class Device(StrEnum):
    """Partitions of the array: whole columns of npu1 (Phoenix, Hawk Point) or npu2 (Strix)."""

    NPU1 = "npu1"
    NPU1_1COL = "npu1_1col"
    NPU1_2COL = "npu1_2col"
    NPU1_3COL = "npu1_3col"
    NPU2 = "npu2"
    NPU2_1COL = "npu2_1col"
    NPU2_2COL = "npu2_2col"
    NPU2_3COL = "npu2_3col"
    NPU2_4COL = "npu2_4col"
    NPU2_5COL = "npu2_5col"
    NPU2_6COL = "npu2_6col"
    NPU2_7COL = "npu2_7col"


class Port(StrEnum):
    PRODUCE = "Produce"
    CONSUME = "Consume"


@irdl_attr_definition
class DeviceAttr(EnumAttribute[Device], SpacedOpaqueSyntaxAttribute):  # type: ignore[misc]
    name = "aie.device_name"


@irdl_attr_definition
class PortAttr(EnumAttribute[Port], SpacedOpaqueSyntaxAttribute):  # type: ignore[misc]
    name = "aie.port"


@irdl_attr_definition
class ObjectFifoType(ParametrizedAttribute, TypeAttribute):
    name = "aie.objectfifo"

    element: MemRefType


@irdl_attr_definition
class SubviewType(ParametrizedAttribute, TypeAttribute):
    name = "aie.objectfifosubview"

    element: MemRefType


@irdl_op_definition
class DeviceOp(IRDLOperation):
    name = "aie.device"

    device = prop_def(DeviceAttr)
    sym_name = opt_prop_def(SymbolNameConstraint())
    body = region_def("single_block")

    traits = traits_def(SymbolTable(), NoTerminator(), OptionalSymbolOpInterface())
    assembly_format = "`(` $device `)` ($sym_name^)? $body attr-dict"


@irdl_op_definition
class EndOp(IRDLOperation):
    name = "aie.end"

    traits = traits_def(IsTerminator())
    assembly_format = "attr-dict"


@irdl_op_definition
class TileOp(IRDLOperation):
    name = "aie.tile"

    col = prop_def(IntegerAttr[I32])
    row = prop_def(IntegerAttr[I32])
    result = result_def(IndexType())

    assembly_format = "`(` $col `,` $row `)` attr-dict"


@irdl_op_definition
class BufferOp(IRDLOperation):
    name = "aie.buffer"

    tile = operand_def(IndexType())
    sym_name = prop_def(StringAttr)
    address = opt_prop_def(IntegerAttr[I32])
    mem_bank = opt_prop_def(IntegerAttr[I32])
    initial_value = opt_prop_def(DenseIntOrFPElementsAttr)
    buffer = result_def(MemRefType)

    traits = traits_def(SymbolOpInterface())
    custom_directives = (InitialValue,)
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "`(` $tile `)` attr-dict `:` type($buffer) "
        "custom<InitialValue>(ref(type($buffer)), $initial_value)"
    )


@irdl_op_definition
class ObjectFifoOp(IRDLOperation):
    name = "aie.objectfifo"

    sym_name = prop_def(SymbolNameConstraint())
    producerTile = operand_def(IndexType())
    dimensionsToStream = prop_def(ArrayAttr[DimAttr])
    consumerTiles = var_operand_def(IndexType())
    dimensionsFromStreamPerConsumer = prop_def(ArrayAttr[ArrayAttr[DimAttr]])
    elemNumber = prop_def(IntegerAttr[I32] | ArrayAttr[IntegerAttr[I64]])  # type: ignore[arg-type]
    elemType = prop_def(ObjectFifoType)

    traits = traits_def(SymbolOpInterface())
    custom_directives = (ProducerDims, Consumers)
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$sym_name `(` $producerTile custom<ProducerDims>($dimensionsToStream) `,` "
        "custom<Consumers>($consumerTiles, $dimensionsFromStreamPerConsumer) `,` $elemNumber `)` "
        "attr-dict `:` qualified($elemType)"
    )

    def verify_(self) -> None:
        if isinstance(self.elemNumber, ArrayAttr) and len(self.elemNumber) != 1 + len(
            self.consumerTiles
        ):
            raise VerifyException(
                f"object FIFO @{self.sym_name.data} gives {len(self.elemNumber)} "
                "depths; an array of depths has "
                f"one for the producer and one for each of its {len(self.consumerTiles)} consumers"
            )


@irdl_op_definition
class LinkOp(IRDLOperation):
    name = "aie.objectfifo.link"

    fifoIns = prop_def(ArrayAttr[SymbolRefAttr])
    fifoOuts = prop_def(ArrayAttr[SymbolRefAttr])
    src_offsets = prop_def(ArrayAttr[IntegerAttr[I64]])
    dst_offsets = prop_def(ArrayAttr[IntegerAttr[I64]])

    assembly_format = "$fifoIns `->` $fifoOuts `(` $src_offsets $dst_offsets `)` attr-dict"


@irdl_op_definition
class AcquireOp(IRDLOperation):
    name = "aie.objectfifo.acquire"

    port = prop_def(PortAttr)
    objFifo_name = prop_def(SymbolRefAttr)
    size = prop_def(IntegerAttr[I32])
    subview = result_def(
        MessageConstraint(
            SubviewType,
            "an acquire gives an !aie.objectfifosubview; that of mlir-aie after August 2026, which "
            "gives memrefs, is not read here",
        )
    )

    assembly_format = "attr-dict $objFifo_name `(` $port `,` $size `)` `:` type($subview)"

    def verify_(self) -> None:
        _verify_count(self)
        fifo = SymbolTable.lookup_symbol(self, self.objFifo_name)
        taken = self.subview.type
        assert isinstance(taken, SubviewType)
        if isinstance(fifo, ObjectFifoOp) and fifo.elemType.element != taken.element:
            raise VerifyException(
                f"elements of @{fifo.sym_name.data} are {fifo.elemType.element}, not "
                f"{taken.element} as the acquire says"
            )


@irdl_op_definition
class ReleaseOp(IRDLOperation):
    name = "aie.objectfifo.release"

    port = prop_def(PortAttr)
    objFifo_name = prop_def(SymbolRefAttr)
    size = prop_def(IntegerAttr[I32])

    assembly_format = "attr-dict $objFifo_name `(` $port `,` $size `)`"

    def verify_(self) -> None:
        _verify_count(self)


def _verify_count(op: AcquireOp | ReleaseOp) -> None:
    if op.size.value.data < 1:
        raise VerifyException(f"a count of {op.size.value.data} elements; at least 1 is allowed")


@irdl_op_definition
class AccessOp(IRDLOperation):
    name = "aie.objectfifo.subview.access"

    subview = operand_def(SubviewType)
    index = prop_def(IntegerAttr[I32])
    output = result_def(MemRefType)

    assembly_format = "$subview `[` $index `]` attr-dict `:` type($subview) `->` type($output)"

    def verify_(self) -> None:
        subview_type = self.subview.type
        assert isinstance(subview_type, SubviewType)
        if subview_type.element != self.output.type:
            raise VerifyException(
                f"element is {subview_type.element}, but the access gives {self.output.type}"
            )
        acquire, index = self.subview.owner, self.index.value.data
        if isinstance(acquire, AcquireOp) and not 0 <= index < acquire.size.value.data:
            raise VerifyException(
                f"element {index} of the {acquire.size.value.data} that were acquired"
            )


@irdl_op_definition
class CoreOp(IRDLOperation):
    name = "aie.core"

    tile = operand_def(IndexType())
    stack_size = opt_prop_def(IntegerAttr[I32])
    dynamic_objfifo_lowering = opt_prop_def(IntegerAttr)
    link_files = opt_prop_def(ArrayAttr[StringAttr])
    body = region_def()
    result = result_def(IndexType())

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "`(` $tile `)` $body attr-dict"

    def verify_(self) -> None:
        last: Operation | None = self.body.blocks.last.last_op if self.body.blocks.last else None
        if not isinstance(last, EndOp):
            raise VerifyException("an aie.core body must end with aie.end")


@irdl_op_definition
class RuntimeSequenceOp(IRDLOperation):
    name = "aie.runtime_sequence"

    sym_name = opt_prop_def(SymbolNameConstraint())
    body = region_def("single_block")

    traits = traits_def(NoTerminator(), OptionalSymbolOpInterface())
    custom_directives = (ArgumentRegion,)
    assembly_format = "($sym_name^)? custom<ArgumentRegion>($body) attr-dict"


Aie = Dialect(
    "aie",
    [
        DeviceOp,
        EndOp,
        TileOp,
        BufferOp,
        ObjectFifoOp,
        LinkOp,
        AcquireOp,
        ReleaseOp,
        AccessOp,
        CoreOp,
        RuntimeSequenceOp,
    ],
    [DeviceAttr, PortAttr, DimAttr, ObjectFifoType, SubviewType],
)
