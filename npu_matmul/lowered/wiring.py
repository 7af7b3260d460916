"""Which shim channels feed each argument of a core's C function, and which take its results out.

Followed by hand, from buffer to descriptor to flow, without running anything: the one mistake that
no race, no lock and no count shows is a flow that leads somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xdsl.dialects import cf, func
from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from npu_matmul.lowered.module import Buffer, CoreCode, Flow, LoweredModule, Port
from npu_matmul.overlay import Tile


@dataclass(frozen=True)
class Way:
    """A shim channel at the end of a way through the array, the flows passed on it, and the
    offsets in memtile buffers at which what passed was put down or taken up."""

    end: Port
    flows: tuple[Flow, ...]
    offsets: tuple[int, ...]

    @property
    def places(self) -> str:
        return " and ".join(flow.place for flow in self.flows)


_NOWHERE = Port(Tile(0, 0), "MM2S", 0)


def arguments(core: CoreCode, module: LoweredModule, symbol: str, position: int) -> list[Buffer]:
    """The buffers that a core's calls of a symbol pass at a position."""
    found: dict[Buffer, None] = {}
    for op in core.body.walk():
        if isinstance(op, func.CallOp) and op.callee.string_value() == symbol:
            for buffer in _buffers(op.arguments[position], module, set()):
                found[buffer] = None
    return list(found)


def sources(buffer: Buffer, module: LoweredModule) -> list[Way]:
    """The shim channels whose words end in a buffer."""
    return list(_ways(buffer, module, "S2MM", Way(_NOWHERE, (), ()), set()))


def destinations(buffer: Buffer, module: LoweredModule) -> list[Way]:
    """The shim channels that a buffer's words leave the array by."""
    return list(_ways(buffer, module, "MM2S", Way(_NOWHERE, (), ()), set()))


def _ways(
    buffer: Buffer,
    module: LoweredModule,
    direction: str,
    so_far: Way,
    seen: set[Buffer],
) -> Iterator[Way]:
    """``direction`` is that of the channels which touch the buffer on the way."""
    if buffer in seen:
        return
    seen.add(buffer)
    incoming = direction == "S2MM"
    for port, program in module.programs.items():
        touches = any(descriptor.buffer is buffer for descriptor in program.descriptors)
        if port.direction != direction or not touches:
            continue
        for flow in module.flows:
            near, far = flow.destination, flow.source
            if not incoming:
                near, far = far, near
            if near != port:
                continue
            flows = (*so_far.flows, flow)
            if far.tile.kind == "shim":
                yield Way(far, flows, so_far.offsets)
            elif far in module.programs:
                for descriptor in module.programs[far].descriptors:
                    way = Way(far, flows, (*so_far.offsets, descriptor.offset))
                    yield from _ways(descriptor.buffer, module, direction, way, seen)


def _buffers(value: SSAValue, module: LoweredModule, seen: set[SSAValue]) -> Iterator[Buffer]:
    """What a memref may be: through block arguments, from wherever their blocks are entered."""
    found = module.values.get(value)
    if isinstance(found, Buffer):
        yield found
    if not isinstance(value, BlockArgument) or value in seen:
        return
    seen.add(value)
    region = value.block.parent
    for block in () if region is None else region.blocks:
        last = block.last_op
        if last is not None and value.block in last.successors:
            for passed in _passed(last, value.block, value.index):
                yield from _buffers(passed, module, seen)


def _passed(op: Operation, block: Block, index: int) -> Iterator[SSAValue]:
    match op:
        case cf.BranchOp():
            yield op.arguments[index]
        case cf.ConditionalBranchOp():
            if op.then_block is block:
                yield op.then_arguments[index]
            if op.else_block is block:
                yield op.else_arguments[index]
        case cf.SwitchOp():
            if op.default_block is block:
                yield op.default_operands[index]
            for case, operands in zip(op.case_blocks, op.case_operand, strict=True):
                if case is block:
                    yield operands[index]
