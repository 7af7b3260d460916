"""What the buffer descriptors of cores and memtiles can say of an element's layout.

mlir-aie's verifier catches some of it; a wrap or step that only the core's smaller fields cannot
hold is refused by aie-rt, much later, and an inner run of part of a word is truncated silently.
"""

from __future__ import annotations

from collections.abc import Iterator

from npu_matmul.lowering import DmaEnd, dma_ends
from npu_matmul.overlay import Dims, Overlay
from npu_matmul.target import WORD_BYTES, TileLimits
from npu_matmul.violation import Violation


def layout_violations(overlay: Overlay) -> Iterator[Violation]:
    """Lengths and layout transformations that some descriptor cannot say."""
    for end in dma_ends(overlay):
        if end.tile.kind == "shim":
            continue
        limits = overlay.target.limits(end.tile.kind)
        where = f"{end.fifo.place}: object FIFO @{end.fifo.name} at {end.tile}"
        loops = loop_faults(end.dims, end.fifo.dtype.itemsize, limits)
        for rule, found, cure in (*_whole(end, limits), *loops):
            yield Violation(rule, where, found, cure)


def _whole(end: DmaEnd, limits: TileLimits) -> Iterator[tuple[str, str, str]]:
    words = end.fifo.element_bytes // WORD_BYTES
    fits = end.fifo.element_bytes <= limits.memory_bytes  # else that is the matter
    if fits and words > limits.max_words:
        found = f"an element of {words:,} words where a descriptor moves {limits.max_words:,}"
        yield "layout", found, "make the elements smaller"
    if len(end.dims) > limits.dimensions:
        found = f"{len(end.dims)} dimensions where a descriptor there has {limits.dimensions}"
        yield "layout", found, "do a part of the transformation at the other end"


def loop_faults(dims: Dims, itemsize: int, limits: TileLimits) -> Iterator[tuple[str, str, str]]:
    """Rule, what was found and cure of each loop that a descriptor of such a tile cannot say."""
    for position, (size, stride) in enumerate(dims):
        innermost = position == len(dims) - 1
        loop = f"<size = {size}, stride = {stride}>"
        wrap = size * itemsize // WORD_BYTES if innermost else size
        if size > limits.max_size:
            found = f"{loop}: {size} elements where a loop has {limits.max_size} at most"
            yield "layout", found, "split it into two loops"
        elif wrap > limits.max_wrap:
            found = f"{loop}: a wrap of {wrap} where the field holds {limits.max_wrap}"
            yield "layout", found, "split it into two loops"
        if stride * itemsize > limits.max_step * WORD_BYTES:
            found = f"{loop}: a step of {stride * itemsize:,} B"
            found += f" where the field holds {limits.max_step * WORD_BYTES:,} B"
            yield "layout", found, "make the elements smaller"
        if stride == 0:
            yield "layout", f"{loop}: a stride must be positive", "leave the loop out"
        if innermost:
            yield from _inner_run(size, stride, itemsize, loop)
        elif size > 1 and stride * itemsize % WORD_BYTES:
            found = f"{loop}: a stride of {stride * itemsize} B"
            yield "granularity", found, f"DMAs step by whole words of {WORD_BYTES} B"


def _inner_run(size: int, stride: int, itemsize: int, loop: str) -> Iterator[tuple[str, str, str]]:
    """The innermost loop picks elements; what is smaller than a word cannot be picked apart."""
    if size * itemsize % WORD_BYTES:
        found = f"{loop}: an inner run of {size * itemsize} B"
        yield "granularity", found, f"DMAs move whole words of {WORD_BYTES} B"
    if stride > 1 and itemsize < WORD_BYTES:
        found = f"{loop}: elements of {itemsize} B that are {stride} apart"
        yield "granularity", found, "let the innermost loop move neighbours"
