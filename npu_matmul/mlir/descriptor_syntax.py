"""Syntax that a declarative assembly format cannot say and that has changed between releases of
mlir-aie: the pattern of a buffer descriptor, and numbers that became values."""

from __future__ import annotations

from xdsl.dialects.builtin import ArrayAttr, IntegerAttr, i32, i64
from xdsl.ir import ParametrizedAttribute
from xdsl.irdl import IRDLOperation, irdl_attr_definition
from xdsl.irdl.declarative_assembly_format import (
    AttributeVariable,
    CustomDirective,
    OptionalOperandVariable,
    ParsingState,
    PrintingState,
    irdl_custom_directive,
)
from xdsl.parser import Parser
from xdsl.printer import Printer

from npu_matmul.mlir.directives import DimAttr, parse_dim, parse_field

_SQUARE = Parser.Delimiter.SQUARE


@irdl_attr_definition
class PadAttr(ParametrizedAttribute):
    """Constant elements around one loop: ``<const_pad_before = N, const_pad_after = N>``."""

    name = "aie.bd_pad_layout"

    before: IntegerAttr
    after: IntegerAttr


def _parse_pad(parser: Parser) -> PadAttr:
    parser.parse_punctuation("<")
    before = parse_field(parser, "const_pad_before")
    parser.parse_punctuation(",")
    after = parse_field(parser, "const_pad_after")
    parser.parse_punctuation(">")
    return PadAttr(IntegerAttr(before, i64), IntegerAttr(after, i64))


def _parse_pads(parser: Parser) -> list[PadAttr]:
    return parser.parse_comma_separated_list(_SQUARE, lambda: _parse_pad(parser))


def _parse_integers(parser: Parser) -> list[int]:
    parser.parse_punctuation("=")
    return parser.parse_comma_separated_list(_SQUARE, parser.parse_integer)


def _format_pad(pad: PadAttr) -> str:
    before, after = pad.before.value.data, pad.after.value.data
    return f"<const_pad_before = {before}, const_pad_after = {after}>"


@irdl_custom_directive
class Pattern(CustomDirective):
    """``, OFFSET, LENGTH, [<size, stride>, ..], [<padding>, ..], pad_value = N``; each may end it.

    From July 2026 on mlir-aie writes the same with names: ``offset = N len = N sizes = [..]
    strides = [..] pad [<padding>, ..] pad_value = N``, where offset and length may be values
    (``offset = %n``). Both are read; what is printed has names.
    """

    offset: AttributeVariable
    length: AttributeVariable
    offset_value: OptionalOperandVariable
    length_value: OptionalOperandVariable
    dims: AttributeVariable
    pads: AttributeVariable
    pad_value: AttributeVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        self.offset_value.set(state, None)
        self.length_value.set(state, None)
        for integer in (self.offset, self.length):
            if parser.parse_optional_punctuation(",") is None:
                self._parse_named(parser, state)
                return
            value = parser.parse_integer(allow_boolean=False, allow_negative=False)
            integer.set(state, IntegerAttr(value, i32))
        while parser.parse_optional_punctuation(",") is not None:
            if parser.parse_optional_keyword("pad_value") is not None:
                parser.parse_punctuation("=")
                self.pad_value.set(state, IntegerAttr(parser.parse_integer(), i32))
            elif state.properties.get("dimensions") is None:
                dims = parser.parse_comma_separated_list(_SQUARE, lambda: parse_dim(parser))
                self.dims.set(state, ArrayAttr(dims))
            else:
                self.pads.set(state, ArrayAttr(_parse_pads(parser)))

    def _parse_named(self, parser: Parser, state: ParsingState) -> None:
        for name, integer, operand in (
            ("offset", self.offset, self.offset_value),
            ("len", self.length, self.length_value),
        ):
            if parser.parse_optional_keyword(name) is None:
                continue
            parser.parse_punctuation("=")
            value = parser.parse_optional_unresolved_operand()
            operand.set(state, value)
            if value is None:
                number = parser.parse_integer(allow_boolean=False, allow_negative=False)
                integer.set(state, IntegerAttr(number, i32))
        if parser.parse_optional_keyword("sizes") is not None:
            sizes = _parse_integers(parser)
            parser.parse_keyword("strides")
            strides = _parse_integers(parser)
            if len(sizes) != len(strides):
                parser.raise_error(f"{len(sizes)} sizes and {len(strides)} strides")
            pairs = zip(sizes, strides, strict=True)
            dims = [DimAttr(IntegerAttr(n, i64), IntegerAttr(step, i64)) for n, step in pairs]
            if dims:
                self.dims.set(state, ArrayAttr(dims))
        if parser.parse_optional_keyword("pad") is not None:
            self.pads.set(state, ArrayAttr(_parse_pads(parser)))
        if parser.parse_optional_keyword("pad_value") is not None:
            parser.parse_punctuation("=")
            self.pad_value.set(state, IntegerAttr(parser.parse_integer(), i32))

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        for name, integer, operand in (
            ("offset", self.offset.get(op), self.offset_value.get(op)),
            ("len", self.length.get(op), self.length_value.get(op)),
        ):
            if operand is not None:
                printer.print_string(f" {name} = ")
                printer.print_ssa_value(operand)
            elif integer is not None:
                printer.print_string(f" {name} = {integer.value.data}")  # type: ignore[attr-defined]
        dims, pads, pad_value = self.dims.get(op), self.pads.get(op), self.pad_value.get(op)
        if dims is not None:
            sizes = ", ".join(str(dim.size.value.data) for dim in dims)  # type: ignore[attr-defined]
            strides = ", ".join(str(dim.stride.value.data) for dim in dims)  # type: ignore
            printer.print_string(f" sizes = [{sizes}] strides = [{strides}]")
        if pads is not None:
            printer.print_string(f" pad [{', '.join(map(_format_pad, pads))}]")  # type: ignore
        if pad_value is not None:
            printer.print_string(f" pad_value = {pad_value.value.data}")  # type: ignore
        state.should_emit_space, state.last_was_punctuation = False, False


@irdl_custom_directive
class Amount(CustomDirective):
    """``, N`` or nothing; later releases of mlir-aie write ``, %n``, a constant."""

    value: AttributeVariable
    amount: OptionalOperandVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        self.amount.set(state, None)
        if parser.parse_optional_punctuation(",") is None:
            return
        operand = parser.parse_optional_unresolved_operand()
        self.amount.set(state, operand)
        if operand is None:
            value = parser.parse_integer(allow_boolean=False)
            self.value.set(state, IntegerAttr(value, i32))

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        value, amount = self.value.get(op), self.amount.get(op)
        if value is not None:
            printer.print_string(f", {value.value.data}")  # type: ignore[attr-defined]
        if amount is not None:
            printer.print_string(", ")
            printer.print_ssa_value(amount)
        state.should_emit_space, state.last_was_punctuation = False, False


@irdl_custom_directive
class AmountType(CustomDirective):
    """``: i32`` where the amount is a value, nothing where it is a number."""

    amount: OptionalOperandVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
        if state.operands[self.amount.index]:
            parser.parse_punctuation(":", " and the type i32 after the value")
            kind = parser.parse_type()
            if kind != i32:
                parser.raise_error(f"the value has type {kind}; i32 is allowed")

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        if self.amount.get(op) is not None:
            printer.print_string(f" : {i32}")
        state.should_emit_space, state.last_was_punctuation = True, False
