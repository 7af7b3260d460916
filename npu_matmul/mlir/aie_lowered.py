"""What the ``aie`` dialect has once object FIFOs are lowered: locks, DMA programs, flows.

Syntax of mlir-aie, April 2026, as its passes print it between allocation and routing, and what
later releases write otherwise. The reader loads these beside the operations of
:mod:`npu_matmul.mlir.aie`; what neither defines is refused.
"""

from __future__ import annotations

from xdsl.dialects.builtin import (
    I32,
    I64,
    ArrayAttr,
    BoolAttr,
    IndexType,
    IntegerAttr,
    IntegerType,
    MemRefType,
    StringAttr,
    SymbolNameConstraint,
    i1,
    i32,
)
from xdsl.dialects.utils import EnumAttribute
from xdsl.ir import ParametrizedAttribute, SpacedOpaqueSyntaxAttribute
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    ParsePropInAttrDict,
    base,
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    successor_def,
    traits_def,
)
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.traits import (
    IsTerminator,
    NoTerminator,
    OptionalSymbolOpInterface,
    SymbolOpInterface,
)
from xdsl.utils.str_enum import StrEnum

from npu_matmul.mlir.descriptor_syntax import Amount, PadAttr, Pattern
from npu_matmul.mlir.directives import DimAttr, parse_field


class LockAction(StrEnum):
    ACQUIRE = "Acquire"
    ACQUIRE_GREATER_EQUAL = "AcquireGreaterEqual"
    RELEASE = "Release"


class Direction(StrEnum):
    S2MM = "S2MM"
    MM2S = "MM2S"


class Bundle(StrEnum):
    """Ports of a stream switch."""

    CORE = "Core"
    DMA = "DMA"
    FIFO = "FIFO"
    SOUTH = "South"
    WEST = "West"
    NORTH = "North"
    EAST = "East"
    PLIO = "PLIO"
    NOC = "NOC"
    TRACE = "Trace"
    TILE_CONTROL = "TileControl"


@irdl_attr_definition
class LockActionAttr(EnumAttribute[LockAction], SpacedOpaqueSyntaxAttribute):  # type: ignore[misc]
    name = "aie.lock_action"


@irdl_attr_definition
class DirectionAttr(EnumAttribute[Direction], SpacedOpaqueSyntaxAttribute):  # type: ignore[misc]
    name = "aie.dma_channel_dir"


@irdl_attr_definition
class BundleAttr(EnumAttribute[Bundle], SpacedOpaqueSyntaxAttribute):  # type: ignore[misc]
    name = "aie.wire_bundle"


@irdl_attr_definition
class PacketInfoAttr(ParametrizedAttribute):
    """``<pkt_type = 0, pkt_id = 15>``: the number of a tile's control port; nothing moves by it."""

    name = "aie.packet_info"

    pkt_type: IntegerAttr
    pkt_id: IntegerAttr

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[IntegerAttr]:
        with parser.in_angle_brackets():
            kind = parse_field(parser, "pkt_type")
            parser.parse_punctuation(",")
            number = parse_field(parser, "pkt_id")
        return [IntegerAttr(kind, i32), IntegerAttr(number, i32)]

    def print_parameters(self, printer: Printer) -> None:
        kind, number = self.pkt_type.value.data, self.pkt_id.value.data
        printer.print_string(f"<pkt_type = {kind}, pkt_id = {number}>")


@irdl_op_definition
class ExternalBufferOp(IRDLOperation):
    """Host memory that a static shim program moves; its address is set by the host's program."""

    name = "aie.external_buffer"

    sym_name = opt_prop_def(StringAttr)
    buffer = result_def(MemRefType)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "attr-dict `:` type($buffer)"


@irdl_op_definition
class LockOp(IRDLOperation):
    name = "aie.lock"

    tile = operand_def(IndexType())
    lockID = opt_prop_def(IntegerAttr[I32])
    init = opt_prop_def(IntegerAttr)
    sym_name = opt_prop_def(StringAttr)
    result = result_def(IndexType())

    traits = traits_def(OptionalSymbolOpInterface())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "`(` $tile (`,` $lockID^)? `)` attr-dict"


@irdl_op_definition
class UseLockOp(IRDLOperation):
    name = "aie.use_lock"

    lock = operand_def(IndexType())
    amount = opt_operand_def(i32)
    action = prop_def(LockActionAttr)
    value = opt_prop_def(IntegerAttr[I32])

    custom_directives = (Amount,)
    assembly_format = "`(` $lock `,` $action custom<Amount>($value, $amount) `)` attr-dict"


@irdl_op_definition
class DmaStartOp(IRDLOperation):
    """Starts a channel with the descriptor in ``dest``; ``chain`` has the next channel's start."""

    name = "aie.dma_start"

    channel_dir = prop_def(DirectionAttr)
    channel_index = prop_def(IntegerAttr[I32])
    repeat_count = opt_prop_def(IntegerAttr[I32])
    pad_value = opt_prop_def(IntegerAttr[I32])  # in later releases of mlir-aie
    dest = successor_def()
    chain = successor_def()
    valid = result_def(i1)

    traits = traits_def(IsTerminator())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "`(` $channel_dir `,` $channel_index `,` $dest `,` $chain "
        "(`,` `repeat_count` `=` $repeat_count^)? `)` attr-dict"
    )


@irdl_op_definition
class DmaBdOp(IRDLOperation):
    """A buffer descriptor; offset, length, sizes and strides are in elements, outermost first."""

    name = "aie.dma_bd"

    buffer = operand_def(MemRefType)
    offset_value = opt_operand_def(i32)
    length_value = opt_operand_def(i32)
    offset = opt_prop_def(IntegerAttr[I32])
    len = opt_prop_def(IntegerAttr[I32])
    dimensions = opt_prop_def(ArrayAttr[DimAttr])
    pad_dimensions = opt_prop_def(ArrayAttr[PadAttr])
    pad_value = opt_prop_def(IntegerAttr[I32])
    bd_id = opt_prop_def(IntegerAttr[I32])
    next_bd_id = opt_prop_def(IntegerAttr[I32])

    custom_directives = (Pattern,)
    irdl_options = (AttrSizedOperandSegments(as_property=True), ParsePropInAttrDict())
    assembly_format = (
        "`(` $buffer `:` type($buffer) custom<Pattern>($offset, $len, $offset_value, "
        "$length_value, $dimensions, $pad_dimensions, $pad_value) `)` attr-dict"
    )


@irdl_op_definition
class NextBdOp(IRDLOperation):
    name = "aie.next_bd"

    dest = successor_def()

    traits = traits_def(IsTerminator())
    assembly_format = "$dest attr-dict"


@irdl_op_definition
class IndexCastUIOp(IRDLOperation):
    """Of later releases, which narrow the indices of loops; xDSL has only the signed cast."""

    name = "arith.index_castui"

    input = operand_def(base(IntegerType) | base(IndexType))
    result = result_def(base(IntegerType) | base(IndexType))

    assembly_format = "$input attr-dict `:` type($input) `to` type($result)"


class DmaProgramOp(IRDLOperation):
    """The DMA channels of one tile, each a chain of descriptors."""

    tile = operand_def(IndexType())
    body = region_def()
    result = result_def(IndexType())

    assembly_format = "`(` $tile `)` $body attr-dict"


@irdl_op_definition
class MemOp(DmaProgramOp):
    name = "aie.mem"


@irdl_op_definition
class MemtileDmaOp(DmaProgramOp):
    name = "aie.memtile_dma"


@irdl_op_definition
class ShimDmaOp(DmaProgramOp):
    name = "aie.shim_dma"


@irdl_op_definition
class FlowOp(IRDLOperation):
    """A circuit-switched stream; several from one source are a broadcast."""

    name = "aie.flow"

    source = operand_def(IndexType())
    source_bundle = prop_def(BundleAttr)
    source_channel = prop_def(IntegerAttr[I32])
    dest = operand_def(IndexType())
    dest_bundle = prop_def(BundleAttr)
    dest_channel = prop_def(IntegerAttr[I32])

    assembly_format = (
        "`(` $source `,` $source_bundle `:` $source_channel `,` "
        "$dest `,` $dest_bundle `:` $dest_channel `)` attr-dict"
    )


@irdl_op_definition
class ShimDmaAllocationOp(IRDLOperation):
    """The shim channel that a runtime sequence means by a name."""

    name = "aie.shim_dma_allocation"

    sym_name = prop_def(SymbolNameConstraint())
    tile = operand_def(IndexType())
    channel_dir = prop_def(DirectionAttr)
    channel_index = prop_def(IntegerAttr[I64])

    traits = traits_def(SymbolOpInterface())
    assembly_format = "$sym_name `(` $tile `,` $channel_dir `,` $channel_index `)` attr-dict"


@irdl_op_definition
class PacketFlowOp(IRDLOperation):
    name = "aie.packet_flow"

    ID = prop_def(IntegerAttr.constr(IntegerType(8)))
    keep_pkt_header = opt_prop_def(BoolAttr)
    priority_route = opt_prop_def(BoolAttr)
    ports = region_def("single_block")

    traits = traits_def(NoTerminator())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "`(` $ID `)` $ports attr-dict"


class PacketPortOp(IRDLOperation):
    tile = operand_def(IndexType())
    bundle = prop_def(BundleAttr)
    channel = prop_def(IntegerAttr[I32])

    assembly_format = "`<` $tile `,` $bundle `:` $channel `>` attr-dict"


@irdl_op_definition
class PacketSourceOp(PacketPortOp):
    name = "aie.packet_source"


@irdl_op_definition
class PacketDestOp(PacketPortOp):
    name = "aie.packet_dest"


OPERATIONS: tuple[type[IRDLOperation], ...] = (
    ExternalBufferOp,
    LockOp,
    UseLockOp,
    DmaStartOp,
    DmaBdOp,
    NextBdOp,
    IndexCastUIOp,
    MemOp,
    MemtileDmaOp,
    ShimDmaOp,
    FlowOp,
    ShimDmaAllocationOp,
    PacketFlowOp,
    PacketSourceOp,
    PacketDestOp,
)
ATTRIBUTES = (LockActionAttr, DirectionAttr, BundleAttr, PacketInfoAttr, PadAttr)
