"""Pieces of the ``aie`` dialect's syntax that a declarative assembly format cannot say."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import ArrayAttr, IntegerAttr, MemRefType, TensorType, i64
from xdsl.ir import ParametrizedAttribute
from xdsl.irdl import IRDLOperation, irdl_attr_definition
from xdsl.irdl.declarative_assembly_format import (
    AttributeVariable,
    CustomDirective,
    ParsingState,
    PrintingState,
    RegionVariable,
    TypeDirective,
    VariadicOperandVariable,
    irdl_custom_directive,
)
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer


@irdl_attr_definition
class DimAttr(ParametrizedAttribute):
    """One dimension of a layout transformation: ``<size = N, stride = S>``, stride in elements."""

    name = "aie.bd_dim_layout"

    size: IntegerAttr
    stride: IntegerAttr


def parse_field(parser: AttrParser, name: str) -> int:
    """``name = N``."""
    parser.parse_keyword(name)
    parser.parse_punctuation("=")
    return parser.parse_integer(allow_boolean=False, allow_negative=False)


def parse_dim(parser: Parser) -> DimAttr:
    parser.parse_punctuation("<")
    size = parse_field(parser, "size")
    parser.parse_punctuation(",")
    stride = parse_field(parser, "stride")
    parser.parse_punctuation(">")
    return DimAttr(IntegerAttr(size, i64), IntegerAttr(stride, i64))


def format_dim(dim: DimAttr) -> str:
    return f"<size = {dim.size.value.data}, stride = {dim.stride.value.data}>"


def _parse_dims(parser: Parser, keyword: str) -> ArrayAttr[DimAttr]:
    if parser.parse_optional_keyword(keyword) is None:
        return ArrayAttr([])
    return ArrayAttr(
        parser.parse_comma_separated_list(Parser.Delimiter.SQUARE, lambda: parse_dim(parser))
    )


def _print_dims(printer: Printer, keyword: str, dims: Sequence[DimAttr]) -> None:
    if not dims:
        return
    printer.print_string(f" {keyword} [{', '.join(map(format_dim, dims))}]")


@irdl_custom_directive
class ProducerDims(CustomDirective):
    """``dimensionsToStream [...]`` after the producer tile, or nothing."""

    dims: AttributeVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        self.dims.set(state, _parse_dims(parser, "dimensionsToStream"))

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        _print_dims(printer, "dimensionsToStream", self.dims.get(op).data)  # type: ignore[union-attr]
        state.should_emit_space, state.last_was_punctuation = False, False


@irdl_custom_directive
class Consumers(CustomDirective):
    """``{%t0 dimensionsFromStream [...], %t1}``: each consumer tile with its layout
    transformation."""

    tiles: VariadicOperandVariable
    dims: AttributeVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        entries = parser.parse_comma_separated_list(
            Parser.Delimiter.BRACES,
            lambda: (
                parser.parse_unresolved_operand(),
                _parse_dims(parser, "dimensionsFromStream"),
            ),
        )
        self.tiles.set(state, [tile for tile, _ in entries])
        self.dims.set(state, ArrayAttr([dims for _, dims in entries]))

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        state.print_whitespace(printer)
        printer.print_string("{")
        dims = self.dims.get(op).data  # type: ignore[union-attr]
        for position, (tile, layout) in enumerate(zip(self.tiles.get(op), dims, strict=True)):
            if position:
                printer.print_string(", ")
            printer.print_ssa_value(tile)
            _print_dims(printer, "dimensionsFromStream", layout.data)
        printer.print_string("}")


@irdl_custom_directive
class ArgumentRegion(CustomDirective):
    """``(%a: memref<..>, ..) {..}``: a region with its arguments before it."""

    body: RegionVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        arguments = parser.parse_comma_separated_list(
            Parser.Delimiter.PAREN, lambda: parser.parse_argument(expect_type=True)
        )
        self.body.set(state, parser.parse_region(arguments))  # type: ignore[arg-type]

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        region = self.body.get(op)
        printer.print_string("(")
        printer.print_list(region.block.args, printer.print_block_argument)
        printer.print_string(") ")
        printer.print_region(region, print_entry_block_args=False)


@irdl_custom_directive
class InitialValue(CustomDirective):
    """``= dense<..>`` after a buffer's type, or nothing."""

    kind: TypeDirective
    value: AttributeVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        if parser.parse_optional_punctuation("=") is None:
            return
        parser.parse_keyword("dense")
        found = state.result_types[self.kind.inner.index]  # type: ignore[attr-defined]
        assert found is not None
        memref = found[0]
        assert isinstance(memref, MemRefType)
        tensor = TensorType(memref.element_type, memref.get_shape())
        self.value.set(state, parser.parse_dense_int_or_fp_elements_attr(tensor))

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        value = self.value.get(op)
        if value is None:
            return
        printer.print_string(" = " + str(value).rpartition(" : ")[0])
