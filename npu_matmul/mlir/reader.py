"""Reads a design's MLIR text into xDSL operations, and says file and line when it cannot.

Comes in: text. Goes out: the one ``aie.device`` operation, verified. Beyond xDSL's own checks this
adds source positions on every operation and the dominance rule (xDSL accepts a value of a sibling
region).
"""

from __future__ import annotations

import re
from bisect import bisect_right

from xdsl.context import Context
from xdsl.dialects import arith, builtin, cf, func, memref, scf
from xdsl.dialects.builtin import FileLineColLoc, IntAttr, ModuleOp, StringAttr
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.parser import Parser
from xdsl.utils.exceptions import DiagnosticException, ParseError

from npu_matmul.mlir import aie_lowered
from npu_matmul.mlir.aie import Aie, DeviceOp
from npu_matmul.mlir.aiex import Aiex

SHOWN_CHARACTERS = 600
_UNKNOWN = r"Operation (\S+) (?:is not registered|does not have a custom format)"
_STANDARD = (builtin.Builtin, arith.Arith, scf.Scf, cf.Cf, func.Func, memref.MemRef)


class DesignError(ValueError):
    """A design cannot be read or is not well formed; the message gives the place."""


class _LocatingParser(Parser):
    """Gives every operation the position of its first token, which xDSL leaves unknown."""

    _line_starts: list[int] | None = None

    def parse_operation(self) -> Operation:
        span = self._current_token.span
        if self._line_starts is None:
            content = span.input.content
            self._line_starts = [0, *(match.end() for match in re.finditer("\n", content))]
        line = bisect_right(self._line_starts, span.start)
        line_start = self._line_starts[line - 1]
        try:
            op = super().parse_operation()
        except (ParseError, DesignError):
            raise
        except Exception as error:  # of an attribute that does not fit: xDSL gives these no place
            raise DesignError(f"{span.input.name}:{line}: {_short(error)}") from error
        op.location = FileLineColLoc(
            StringAttr(span.input.name), IntAttr(line), IntAttr(span.start - line_start + 1)
        )
        return op


def read_design(text: str, name: str = "design.mlir") -> DeviceOp:
    """The verified ``aie.device`` of an MLIR module; raises :class:`DesignError`.

    >>> read_design("aie.device(npu1) { %t = aie.tile(0, 2) }").device.data.value
    'npu1'
    """
    if not text.strip():
        raise DesignError(f"{name} is empty: it must hold an aie.device")
    if "\0" in text:
        raise DesignError(f"{name} holds binary data, not the text of an MLIR module")
    context = Context()
    for dialect in (*_STANDARD, Aie, Aiex):
        context.load_dialect(dialect)
    for operation in aie_lowered.OPERATIONS:
        context.load_op(operation)
    for attribute in aie_lowered.ATTRIBUTES:
        context.load_attr_or_type(attribute)
    try:
        module = _LocatingParser(context, text, name).parse_module()
    except ParseError as error:
        raise DesignError(_short(error)) from None
    _verify(module)
    devices = [op for op in module.walk() if isinstance(op, DeviceOp)]
    if len(devices) != 1:
        where = place(devices[1]) if devices else name
        raise DesignError(
            f"{where}: holds {len(devices)} aie.device operations; exactly one is needed"
        )
    return devices[0]


def place(op: Operation) -> str:
    """Where an operation stands in its source: ``file:line``."""
    location = op.location
    if isinstance(location, FileLineColLoc):
        return f"{location.filename.data}:{location.line.data}"
    return "(no position)"


def _verify(module: ModuleOp) -> None:
    for op in module.walk():
        try:
            op.verify(verify_nested_ops=False)
        except DiagnosticException as error:
            raise DesignError(f"{place(op)}: {op.name}: {_short(error)}") from None
        except Exception as error:  # xDSL raises bare Exceptions from some operations' verifiers
            raise DesignError(f"{place(op)}: {op.name}: {_short(error)}") from error
    _check_dominance(module.body, set())


def _check_dominance(region: Region, known: set[SSAValue]) -> None:
    """Every operand must be defined before it, on every way that leads there, in its own region or
    one around it; a device sees nothing of what is around it."""
    entered = _known_at_entry(region, known)
    for block in region.blocks:
        here = set(entered[block]) | set(block.args)
        for op in block.ops:
            for operand in op.operands:
                if operand not in here:
                    hint = f"%{operand.name_hint}" if operand.name_hint else "a value"
                    raise DesignError(
                        f"{place(op)}: {op.name} uses {hint} before or outside its definition"
                    )
            for inner in op.regions:
                _check_dominance(inner, set() if isinstance(op, DeviceOp) else here)
            here.update(op.results)


def _known_at_entry(region: Region, known: set[SSAValue]) -> dict[Block, set[SSAValue]]:
    """What is defined wherever one comes to each block from; blocks that nobody enters know all."""
    blocks = list(region.blocks)
    everything = known.union(*(_defined(block) for block in blocks))
    entered = dict.fromkeys(blocks, everything)
    pending = blocks[:1]
    if blocks:
        entered[blocks[0]] = known
    while pending:
        block = pending.pop()
        last = block.last_op
        leaving = entered[block] | _defined(block)
        for following in () if last is None else last.successors:
            if not entered[following] <= leaving:
                entered[following] = entered[following] & leaving
                pending.append(following)
    return entered


def _defined(block: Block) -> set[SSAValue]:
    return {*block.args, *(result for op in block.ops for result in op.results)}


def _short(error: BaseException) -> str:
    """xDSL can append the whole annotated IR to a message: keep what a person reads."""
    text = re.sub(_UNKNOWN, r"operation \1 is not supported", str(error).strip())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."
