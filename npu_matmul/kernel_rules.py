"""Design rules of kernels: of their generated designs, their stacks and their sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from npu_matmul.design import design_text
from npu_matmul.design_rules import Checked, check_text
from npu_matmul.kernel import Kernel
from npu_matmul.launch import launch_sequence
from npu_matmul.schedule import cover
from npu_matmul.symbol_rules import judged_symbols
from npu_matmul.target import TARGETS
from npu_matmul.tiler import TileGrid
from npu_matmul.violation import Violation

# Of a kernel's cores: twice the toolchain's default, which nine spilled accumulators of 1,024 bits
# would overflow; nothing notices when a stack runs into the buffers behind it.
MIN_STACK_BYTES = 2048


def check_kernel(kernel: Kernel, target: str = "npu1", scheme: str = "basic-sequential") -> Checked:
    """Everything that is wrong with a kernel: its generated design with the sequence of a small
    product, its stack, and what its source expects: tiles of whole blocks, and its symbols."""
    rows, columns = kernel.block
    launch = cover(TileGrid(kernel, 2 * rows, 2 * kernel.tile.k, 2 * columns))[0]
    sequence = launch_sequence(kernel, launch.shape, TARGETS[target])
    checked = check_text(design_text(kernel, target, sequence), f"{kernel.name}.mlir", scheme)
    symbols = kernel.symbols.first, kernel.symbols.next
    where = f"{kernel.name} {kernel.variant}: {kernel.source.name}"
    violations, notes = judged_symbols(kernel.source, symbols, where)
    return replace(
        checked,
        name=f"{kernel.name} {kernel.variant}",
        violations=(*checked.violations, *_stack(kernel), *_blocking(kernel), *violations),
        notes=notes,
    )


def _stack(kernel: Kernel) -> Iterator[Violation]:
    if kernel.stack_bytes < MIN_STACK_BYTES:
        found = f"{kernel.stack_bytes:,} B where a kernel's cores need {MIN_STACK_BYTES:,} B"
        cure = f"set it to {MIN_STACK_BYTES} or more, a multiple of 32"
        yield Violation("stack", f"{kernel.name} {kernel.variant}: stack_bytes", found, cure)


def _blocking(kernel: Kernel) -> Iterator[Violation]:
    for letter, unit in (("m", kernel.mmul.r), ("n", kernel.mmul.t)):
        size, blocks = getattr(kernel.tile, letter), getattr(kernel.blocking, letter)
        if size % (unit * blocks):
            where = f"{kernel.name} {kernel.variant}: tile {letter}"
            found = f"{size}, and its core function computes {blocks} blocks of {unit} at once"
            cure = f"make it a multiple of {unit * blocks}, or write a function with other blocking"
            yield Violation("blocking", where, found, cure)
