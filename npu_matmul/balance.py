"""Acquires and releases of a core must balance within each block of its program.

The toolchain counts what a core holds statically, block by block. Where that does not come out
even it drops lock acquires without a word, and the core then reads elements that have not arrived;
so the emulator refuses such a program instead of giving it the meaning one would like.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.ir import Block

from npu_matmul.mlir import aie
from npu_matmul.mlir.reader import place
from npu_matmul.overlay import Core
from npu_matmul.violation import Violation

End = tuple[str, aie.Port]  # one side of an object FIFO

RULE = "acquire and release must balance within each block"
PEEL = "peel the first step out of the loop"


def unbalanced(core: Core) -> Iterator[Violation]:
    """Where a core's acquires and releases do not balance: the first place for each FIFO."""
    reported: set[End] = set()
    for block in core.body.blocks:
        for end, violation in _unbalanced(block, set(), str(core.tile)):
            if end not in reported:
                yield violation
            reported.add(end)


def _unbalanced(block: Block, outside: set[End], core: str) -> Iterator[tuple[End, Violation]]:
    """``outside`` is what the blocks around this one hold."""
    held: dict[End, int] = {}
    acquired_at: dict[End, str] = {}
    for op in block.ops:
        if isinstance(op, aie.AcquireOp | aie.ReleaseOp):
            end = op.objFifo_name.string_value(), op.port.data
            size = op.size.value.data
            where = f"{place(op)}: {core}"
            if end in outside:
                found = f"@{end[0]} is acquired in an outer block and used again in an inner one"
                yield end, Violation("balance", where, f"{found}; {RULE}", PEEL)
                continue
            acquires = isinstance(op, aie.AcquireOp)
            held[end] = max(held.get(end, 0), size) if acquires else held.get(end, 0) - size
            if acquires:
                acquired_at[end] = where
            if held[end] < 0:
                found = f"releases more of @{end[0]} than this block has acquired"
                yield end, Violation("balance", where, found, "release what was acquired, once")
        for region in op.regions:
            for inner in region.blocks:
                holding = outside | {end for end, count in held.items() if count}
                yield from _unbalanced(inner, holding, core)
    for end, count in held.items():
        if count > 0:
            found = f"this block acquires @{end[0]} and does not release it; {RULE}"
            yield end, Violation("balance", acquired_at[end], found, PEEL)
