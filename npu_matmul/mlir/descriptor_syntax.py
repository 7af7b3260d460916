"""Syntax of lowered modules that a declarative assembly format cannot say: the pattern of a buffer
descriptor, and how much of a lock is used."""

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

from npu_matmul.mlir.directives import DimAttr, format_dim, parse_dim, parse_field

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

    Later releases of mlir-aie write the same with names: ``offset = N len = N sizes = [..]
    strides = [..] pad [<padding>, ..] pad_value = N``. That is read, too, and printed as above.
    """

    offset: AttributeVariable
    length: AttributeVariable
    dims: AttributeVariable
    pads: AttributeVariable
    pad_value: AttributeVariable

    def parse(self, parser: Parser, state: ParsingState) -> None:
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
        for name, integer in (("offset", self.offset), ("len", self.length)):
            if parser.parse_optional_keyword(name) is not None:
                parser.parse_punctuation("=")
                value = parser.parse_integer(allow_boolean=False, allow_negative=False)
                integer.set(state, IntegerAttr(value, i32))
        if parser.parse_optional_keyword("sizes") is not None:
            sizes = _parse_integers(parser)
            parser.parse_keyword("strides")
            strides = _parse_integers(parser)
            if len(sizes) != len(strides):
                parser.raise_error(f"{len(sizes)} sizes and {len(strides)} strides")
            pairs = zip(sizes, strides, strict=True)
            dims = [DimAttr(IntegerAttr(n, i64), IntegerAttr(step, i64)) for n, step in pairs]
            self.dims.set(state, ArrayAttr(dims))
        if parser.parse_optional_keyword("pad") is not None:
            self.pads.set(state, ArrayAttr(_parse_pads(parser)))
        if parser.parse_optional_keyword("pad_value") is not None:
            parser.parse_punctuation("=")
            self.pad_value.set(state, IntegerAttr(parser.parse_integer(), i32))

    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        for variable in (self.offset, self.length):
            integer = variable.get(op)
            if integer is not None:
                printer.print_string(f", {integer.value.data}")  # type: ignore[attr-defined]
        for entries, form in ((self.dims.get(op), format_dim), (self.pads.get(op), _format_pad)):
            if entries is not None:
                printer.print_string(f", [{', '.join(map(form, entries))}]")  # type: ignore
        pad_value = self.pad_value.get(op)
        if pad_value is not None:
            printer.print_string(f", pad_value = {pad_value.value.data}")  # type: ignore
        state.should_emit_space, state.last_was_punctuation = False, False


@irdl_custom_directive
class LockAmount(CustomDirective):
    """``, N``; later releases of mlir-aie write ``, %n``, a constant."""

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
