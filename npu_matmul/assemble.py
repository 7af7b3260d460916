"""Assembler: a runtime sequence on an overlay as the bytes of an instruction stream."""

from __future__ import annotations

from npu_matmul.instructions import (
    Descriptor,
    EnableTokens,
    Operation,
    PatchAddress,
    StartTask,
    Stream,
    StreamError,
    WaitToken,
    WriteDescriptor,
    WriteWord,
)
from npu_matmul.overlay import Overlay
from npu_matmul.sequence import Sequence, Step, Transfer, Wait, WriteParameter
from npu_matmul.target import WORD_BYTES
from npu_matmul.transfer_rules import is_contiguous, step_violations


def assemble(sequence: Sequence, overlay: Overlay) -> bytes:
    """The instruction stream of a sequence on an overlay; raises :class:`StreamError` beyond a
    limit."""
    operations: list[Operation] = []
    for position, step in enumerate(sequence.steps):
        where = f"sequence @{sequence.name}, step {position}"
        if sequence.places:
            where = f"{sequence.places[position]}: {where}"
        for violation in step_violations(step, sequence, overlay, where):
            raise StreamError(str(violation))
        operations += step_operations(step, sequence, overlay)
    return Stream(overlay.target, overlay.columns, tuple(operations)).encode()


def step_operations(step: Step, sequence: Sequence, overlay: Overlay) -> list[Operation]:
    """What one step asks of the firmware; its channel, parameter and argument must exist."""
    if isinstance(step, WriteParameter):
        parameter = overlay.parameters[step.parameter]
        offset = (parameter.address or 0) + step.index * WORD_BYTES
        return [WriteWord(parameter.tile, offset, step.value)]
    channel = overlay.channels[step.fifo]
    if isinstance(step, Wait):
        return [WaitToken(channel)]
    itemsize = sequence.arguments[step.argument].dtype.itemsize
    column, number = channel.column, step.descriptor
    token = step.token or channel.direction == "S2MM"  # the toolchain's rule: writes always report
    return [
        WriteDescriptor(column, number, _descriptor(step, itemsize)),
        PatchAddress(column, number, step.argument, step.offset * itemsize),
        *([EnableTokens(channel)] if token else []),
        StartTask(channel, number, step.sizes[0], token),
    ]


def _descriptor(step: Transfer, itemsize: int) -> Descriptor:
    runs, outer, middle, inner = step.sizes
    words = outer * middle * inner * itemsize // WORD_BYTES
    steps = [stride * itemsize // WORD_BYTES for stride in step.strides]
    walks = runs > 1 and step.strides[0] > 0
    iteration = {"iterations": runs, "iteration_step": steps[0]} if walks else {}
    if is_contiguous(step):
        return Descriptor(words, **iteration)
    return Descriptor(
        words,
        wrap0=inner * itemsize // WORD_BYTES,
        wrap1=middle,
        step0=steps[3] if inner > 1 and step.strides[3] > 1 else 1,
        step1=steps[2] if middle > 1 else 1,
        step2=steps[1] if outer > 1 else 1,
        **iteration,
    )
