"""How a core gets from block to block: branches, conditional branches and switches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xdsl.dialects import cf
from xdsl.ir import Block, Operation, SSAValue

from npu_matmul.mlir import aie
from npu_matmul.mlir.reader import DesignError, place

Values = list[Any]
Slot = Callable[[SSAValue], int]


@dataclass
class Code:
    """A block: its steps, and which block comes after it."""

    block: Block
    steps: list[Any]
    leave: Callable[[Values], Code | None]


Leave = Callable[[Values], Code | None]


def leave(op: Operation, blocks: Mapping[Block, Code], slot: Slot, core: str) -> Leave:
    """What the last operation of a block does: pass values to a block, and say which it is."""

    def branch(block: Block, arguments: Any) -> Leave:
        return _branch(blocks[block], [*map(slot, arguments)], [*map(slot, block.args)])

    match op:
        case aie.EndOp():
            return lambda values: None
        case cf.BranchOp():
            return branch(op.successor, op.arguments)
        case cf.ConditionalBranchOp():
            condition = slot(op.cond)
            then = branch(op.then_block, op.then_arguments)
            otherwise = branch(op.else_block, op.else_arguments)
            return lambda values: then(values) if values[condition] else otherwise(values)
        case cf.SwitchOp():
            flag = slot(op.flag)
            default = branch(op.default_block, op.default_operands)
            numbers = () if op.case_values is None else op.case_values.get_values()
            cases = {
                int(number): branch(block, operands)
                for number, block, operands in zip(
                    numbers, op.case_blocks, op.case_operand, strict=True
                )
            }
            return lambda values: cases.get(values[flag], default)(values)
    raise DesignError(
        f"{place(op)}: {core}: operation {op.name} is not supported at the end of a block"
    )


def _branch(code: Code, sources: list[int], targets: list[int]) -> Leave:
    """All arguments get their values at once: one may be passed to another's place."""

    def branch(values: Values) -> Code:
        moved = [values[source] for source in sources]
        for target, value in zip(targets, moved, strict=True):
            values[target] = value
        return code

    return branch


def following(block: Block) -> set[Block]:
    """The blocks that can run after a block; itself only where it is in a loop."""
    found: set[Block] = set()
    open_blocks = [block]
    while open_blocks:
        last = open_blocks.pop().last_op
        new = set() if last is None else set(last.successors) - found
        found |= new
        open_blocks += new
    return found
