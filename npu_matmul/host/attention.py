"""Self-attention on the host in bf16: softmax(Q K' scale) V of every head, a few rows at a time.

The scores of a few queries with all keys stay in the cache: a microkernel makes them, two passes
turn them into weights, and a microkernel multiplies these with the values. Written to memory, they
would cost as much time as a product.

Queries, keys, values and weights are rounded to bf16, to nearest even; subnormal ones count as 0,
which is how ``vdpbf16ps`` reads them. Scores and sums are float32. A weight is 2 to the power of
its score's distance to the largest of the row, at most 6e-6 of itself off before it is rounded.
Each row is divided by the sum of its weights at the end.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from npu_matmul.host import gemm, microkernel, panels, paths, powers
from npu_matmul.host.compiled import DONE, REFUSED, Task
from npu_matmul.host.paths import choose_path, cpu_features
from npu_matmul.host.pointers import address, pointer
from npu_matmul.host.product import BF16, PACKED_PER_S, PAD_BYTES
from npu_matmul.host.scratch import Room, lent
from npu_matmul.host.threads import in_parts
from npu_matmul.host.vectors import convert_row

Floats = NDArray[np.float32]

ROWS = 28  # of queries at once, two calls of a microkernel: all they need fits a 1 MB cache
PANEL = paths.BF16.columns
LOG2_E = math.log2(math.e)


def usable() -> bool:
    """Whether this CPU has the instructions, and ``$NPU_MATMUL_CPU_PATH`` allows them."""
    return choose_path(BF16.name) is paths.BF16 and cpu_features().issuperset(powers.FEATURES)


def attention(
    query: Floats, key: Floats, value: Floats, out: Floats, tokens: int, width: int
) -> None:
    """Fill ``out`` with softmax(query key' / sqrt(width)) value, of each window and head apart.

    All four are matrices whose rows are windows of ``tokens`` and whose columns are heads of
    ``width``, an even number; the elements of a row are neighbours. A row of ``out`` becomes NaN
    where one of its scores is NaN or +infinity. Only where :func:`usable`.
    """
    count = query.shape[0] // tokens * (query.shape[1] // width)
    if not count:
        return
    with lent("attention") as room:
        keys = _panels(room, "keys", count, width, tokens)
        values = _panels(room, "values", count, tokens, width)
        sizes = tokens, width, query.shape[1] // width
        for x, packed, turned in ((key, keys, True), (value, values, False)):
            given = *_place(x), *sizes, address(packed), packed.nbytes // count, turned
            in_parts(_pack_heads, given, count, 1, x.nbytes / PACKED_PER_S)
        blocks = -(-tokens // ROWS)  # of each head
        table = (
            *_place(query), *sizes, address(keys), keys.nbytes // count, address(values),
            values.nbytes // count, *_place(out), blocks,
        )  # fmt: skip
        one_thread_s = 2 * query.size * tokens / paths.BF16.rate
        in_parts(_attend_blocks, table, count * blocks, 1, one_thread_s)


def _place(x: Floats) -> tuple[int, int]:
    """The address, and the bytes to the next row."""
    assert x.dtype == np.float32 and x.strides[1] == x.itemsize
    return address(x), x.strides[0]


def _panels(room: Room, name: str, count: int, depth: int, columns: int) -> NDArray[np.uint32]:
    """Room for ``count`` matrices (depth, columns)."""
    path = paths.BF16
    shape = count, -(-columns // path.columns), -(-depth // path.group), path.columns
    return room.array(name, shape, np.dtype(np.uint32))


@Task
def _pack_heads(table, first, last):
    """Some heads rounded to bf16 and packed. ``table``: place of all, tokens, width and heads of a
    window, address of the panels, bytes of a head's, and whether heads are turned."""
    t = pointer(table, np.int64)
    tokens, width, heads, turned = t[2], t[3], t[4], t[7]
    near = np.empty(tokens * width, np.uint16)
    start = np.int64(near.ctypes.data)
    for head in range(first, last):
        source = t[0] + head // heads * tokens * t[1] + head % heads * width * 4
        for i in range(tokens):
            convert_row(
                "float32", "bfloat16", "", width, source + i * t[1], start + 2 * i * width, 0, 0
            )
        to = t[5] + head * t[6]
        if turned:
            panels.bf16_matrix((start, 2, 2 * width, width, tokens, to))
        else:
            panels.bf16_matrix((start, 2 * width, 2, tokens, width, to))
    return DONE if near.size else REFUSED  # keeps it alive until here


@Task
def _attend_blocks(table, first, last):
    """Some blocks of queries, of all heads one after the other. ``table``: place of the queries,
    tokens, width and heads of a window; address of the keys' panels and bytes of a head's, the
    values' likewise; place of the result; blocks of a head."""
    t = pointer(table, np.int64)
    tokens, width, heads, blocks = t[2], t[3], t[4], t[11]
    for head in range(first // blocks, (last + blocks - 1) // blocks):
        start = min(max(0, first - head * blocks) * ROWS, tokens)
        stop = min((last - head * blocks) * ROWS, tokens)
        row, column = head // heads * tokens + start, head % heads * width * 4
        _attend(
            (t[0] + row * t[1] + column, t[1]), (stop - start, width), tokens,
            t[5] + head * t[6], t[7] + head * t[8], (t[9] + row * t[10] + column, t[10]),
        )  # fmt: skip
    return DONE


@numba.njit(nogil=True)
def _attend(query, shape, tokens, keys, values, out):
    """Some rows of one head: ``query`` and ``out`` are (address, bytes to the next row), ``shape``
    is (rows, width); the panels begin at the other addresses."""
    rows, width = shape
    columns = (tokens + PANEL - 1) // PANEL * PANEL
    factor = np.float32(LOG2_E / math.sqrt(width))
    # Rows are longer than whole panels, so that they do not share the places of one cache set.
    score_row, weight_row = 4 * columns + PAD_BYTES, 2 * columns + PAD_BYTES
    near = np.empty(ROWS * width, np.uint16)
    scores = np.full(ROWS * score_row // 4, -np.inf, np.float32)  # beyond the last token for good
    weights = np.empty(ROWS * weight_row // 2, np.uint16)
    totals = np.empty(ROWS, np.float32)
    left, middle, right = near.ctypes.data, scores.ctypes.data, weights.ctypes.data
    for top in range(0, rows, ROWS):
        block = min(ROWS, rows - top)
        for i in range(block):
            source, target = query[0] + (top + i) * query[1], left + 2 * i * width
            convert_row("float32", "bfloat16", "rows", width, source, target, factor, 0)
        _product(block, left, 2 * width, width // 2, keys, tokens, middle, score_row)
        for i in range(block):
            totals[i] = powers.weigh_row(columns, middle + i * score_row, right + i * weight_row)
        mixed = out[0] + top * out[1]
        _product(block, right, weight_row, (tokens + 1) // 2, values, width, mixed, out[1])
        for i in range(block):
            share, row = np.float32(1) / totals[i], pointer(mixed + i * out[1], np.float32)
            for j in range(width):
                row[j] *= share
    return near.size + scores.size + weights.size  # keeps them alive until here


@numba.njit(nogil=True)
def _product(rows, a, a_row, words, panels, columns, c, c_row):
    """C = A @ B of bf16 rows of A, whose groups are ``words``, and of panels."""
    for left in range(0, columns, PANEL):
        panel = panels + left * words * 4
        done = 0
        while done < rows:
            count = gemm.rows_at_once(rows - done, gemm.MOST_ROWS)
            microkernel.bf16_sums(
                count, a + done * a_row, a_row, words, 0, 0, panel,
                c + done * c_row + 4 * left, c_row, columns - left, 0, 0,
            )  # fmt: skip
            done += count
