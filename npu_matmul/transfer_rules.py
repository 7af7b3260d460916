"""What the steps of a runtime sequence must be, so that instruction words can say them.

The assembler raises the first of these; the design rules report them all. Sources of the numbers
are in :mod:`npu_matmul.target`; what matters beyond them: an iteration count of 65 and a stride of
4 MiB + 4 B pass mlir-aie's verifier and encode 1 and 4 B.
"""

from __future__ import annotations

from collections.abc import Iterator

from npu_matmul.overlay import Overlay
from npu_matmul.sequence import Sequence, Step, Transfer, Wait, WriteParameter
from npu_matmul.target import WORD_BYTES, Target
from npu_matmul.violation import Violation


def step_violations(
    step: Step, sequence: Sequence, overlay: Overlay, where: str
) -> Iterator[Violation]:
    """What is wrong with one step of a sequence, apart from the others."""
    if isinstance(step, WriteParameter):
        yield from _parameter(step, overlay, where)
    elif isinstance(step, Wait):
        yield from _channel(step.fifo, overlay, where)
    else:
        yield from _transfer(step, sequence, overlay, f"{where}, transfer of @{step.fifo}")


def is_contiguous(step: Transfer) -> bool:
    """A row-major scan of the lower three loops is one linear run, whatever its length."""
    _, outer, middle, inner = step.sizes
    _, outer_stride, middle_stride, inner_stride = step.strides
    return (
        inner_stride == 1
        and (middle == 1 or middle_stride == inner)
        and (outer == 1 or outer_stride == inner * middle)
    )


def _parameter(step: WriteParameter, overlay: Overlay, where: str) -> Iterator[Violation]:
    parameter = overlay.parameters.get(step.parameter)
    if parameter is None:
        known = ", ".join(overlay.parameters)
        found = f"there is no buffer @{step.parameter}; known: {known}"
        yield Violation("parameters", where, found, "name one of these, or declare it")
        return
    if parameter.address is None:
        found = f"buffer @{step.parameter} has no address attribute, so it cannot be written"
        yield Violation("parameters", where, found, "pin it")
    words = parameter.elements * parameter.dtype.itemsize // WORD_BYTES
    if not 0 <= step.index < words:
        found = f"word {step.index} is outside buffer @{step.parameter}"
        yield Violation("parameters", where, found, f"it has words 0 to {words - 1}")
    if not -(1 << 31) <= step.value < 1 << 32:
        found = f"{step.value} does not fit a 32-bit word of buffer @{step.parameter}"
        yield Violation("parameters", where, found, "split it over two words")


def _channel(fifo: str, overlay: Overlay, where: str) -> Iterator[Violation]:
    if fifo not in overlay.channels:
        known = ", ".join(overlay.channels)
        found = f"@{fifo} has no shim channel; FIFOs that have one: {known}"
        yield Violation("wiring", where, found, "name one of these, or end it at a shim")


def _transfer(
    step: Transfer, sequence: Sequence, overlay: Overlay, where: str
) -> Iterator[Violation]:
    yield from _channel(step.fifo, overlay, where)
    descriptors = overlay.target.shim.descriptors
    if not 0 <= step.descriptor < descriptors:
        found = f"descriptor {step.descriptor} does not exist; a shim has {descriptors}"
        cure = "wait for a transfer, then use its descriptor again"
        yield Violation("descriptors", where, found, cure)
    if not 0 <= step.argument < len(sequence.arguments):
        found = f"there is no argument {step.argument}; {len(sequence.arguments)} are given"
        yield Violation("arguments", where, found, "name one of them")
        return
    itemsize = sequence.arguments[step.argument].dtype.itemsize
    offset_bytes = step.offset * itemsize
    if offset_bytes % WORD_BYTES or not 0 <= offset_bytes < 1 << 32:
        found = f"offset {offset_bytes} B must be a multiple of {WORD_BYTES} and below 4 GiB"
        yield Violation("granularity", where, found, "start a view there")
    if min(step.sizes) < 1 or min(step.strides) < 0:
        found = f"sizes {step.sizes} must be positive and strides {step.strides} not negative"
        yield Violation("pattern", where, found, "leave loops that are not needed at 1")
        return
    given = sequence.arguments[step.argument]
    last = step.offset + sum((n - 1) * s for n, s in zip(step.sizes, step.strides, strict=True))
    if last >= given.elements:
        found = f"reaches element {last:,} of %{given.name}, which has {given.elements:,}"
        yield Violation("arguments", where, found, "move less, or declare it larger")
    yield from _sizes(step, itemsize, overlay.target, where)
    for loop in range(4):
        yield from _stride(step, loop, itemsize, overlay.target, where)


def _sizes(step: Transfer, itemsize: int, target: Target, where: str) -> Iterator[Violation]:
    runs, outer, middle, inner = step.sizes
    limits = target.shim
    if inner * itemsize % WORD_BYTES:
        found = f"{inner} elements of {itemsize} B are not a multiple of {WORD_BYTES} B"
        yield Violation("granularity", where, found, "move whole words; pad the rows")
    if inner > 1 and step.strides[3] != 1 and itemsize % WORD_BYTES:
        found = f"elements of {itemsize} B must be next to each other, not {step.strides[3]} apart"
        yield Violation("granularity", where, found, "pick them apart on the host")
    if outer * middle * inner * itemsize // WORD_BYTES > limits.max_words:
        found = f"sizes {step.sizes} of one run exceed a descriptor's 32-bit length"
        yield Violation("pattern", where, found, "split it over several transfers")
    if runs > target.max_iterations:
        found = f"{runs} runs exceed {target.max_iterations}"
        yield Violation("iterations", where, found, "split them over several transfers")
    wrap = max(inner * itemsize // WORD_BYTES, middle)
    if not is_contiguous(step) and wrap > limits.max_wrap:
        found = f"sizes {step.sizes} exceed {limits.max_wrap} words"
        yield Violation("pattern", where, found, "make the inner run contiguous or shorter")


def _stride(
    step: Transfer, loop: int, itemsize: int, target: Target, where: str
) -> Iterator[Violation]:
    size, stride = step.sizes[loop], step.strides[loop]
    if loop == 3 and (stride == 1 or itemsize % WORD_BYTES):
        return
    furthest = target.shim.max_step * WORD_BYTES
    if stride * itemsize % WORD_BYTES:  # refused by the toolchain even where it is never applied
        found = f"stride {stride} x {itemsize} B must be a multiple of {WORD_BYTES} B"
        yield Violation("granularity", where, found, "lay the rows out in whole words")
    elif size == 1 or (loop == 0 and stride == 0):  # never applied, or a pure repeat
        return
    elif stride == 0:
        found = f"stride 0 of a loop of {size}; only the outermost one can repeat"
        yield Violation("pattern", where, found, "repeat with the outermost loop")
    elif stride * itemsize > furthest:
        found = f"stride of {stride * itemsize} B exceeds {furthest} B"
        yield Violation("pattern", where, found, "split it, or bring the rows closer together")
