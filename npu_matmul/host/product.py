"""A product on this host, by one of its paths: B packed once, A as it lies, C written once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npu_matmul.host import gemm, panels
from npu_matmul.host.cached import cached_property
from npu_matmul.host.paths import Path
from npu_matmul.host.pointers import address, aligned_empty
from npu_matmul.host.scratch import lent
from npu_matmul.host.threads import WORTH_S, in_parts

INT8, INT32, FLOAT32, BF16 = (
    np.dtype(kind) for kind in (np.int8, np.int32, np.float32, ml_dtypes.bfloat16)
)
CONFLICT_BYTES = 4096  # rows this far apart share the few places of one set of a first-level cache
PAD_BYTES = 64
# Bytes, about: of B from the last cache (68 to 90 G were measured), and into panels (5 to 34 G).
READ_PER_S, PACKED_PER_S = 80e9, 10e9

_PACK = {"avx512vnni": panels.pack_vnni, "avx2": panels.pack_avx2, "avx512bf16": panels.pack_bf16}
_QUANTISE = {"avx512vnni": gemm.vnni_quantised, "avx2": gemm.avx2_quantised}
_FED = {"avx512vnni": INT8, "avx2": np.dtype(np.int16), "avx512bf16": BF16}
_KINDS = {
    FLOAT32: gemm.F32,
    np.dtype(np.float64): gemm.F64,
    np.dtype(np.float16): gemm.F16,
    BF16: gemm.B16,
    INT8: gemm.I8,
}
# by path and what is computed
_WALKS = {
    ("avx512vnni", "sums"): gemm.vnni_sums,
    ("avx512vnni", "clipped"): gemm.vnni_clipped,
    ("avx512vnni", "scaled"): gemm.vnni_scaled,
    ("avx2", "sums"): gemm.avx2_sums,
    ("avx2", "clipped"): gemm.avx2_clipped,
    ("avx2", "scaled"): gemm.avx2_scaled,
    ("avx512bf16", "sums"): gemm.bf16_sums,
    ("avx512bf16", "rounded"): gemm.bf16_rounded,
    ("avx512bf16", "split"): gemm.bf16_split,
}
_CONVERTED = "scaled", "rounded", "split"  # what A's elements are made into first
_ALL_DONE = np.empty(0, np.intp)


@dataclass(frozen=True, eq=False)
class Panels:
    """B (``depth``, ``columns``) as ``path`` reads it: uint32 (panels, groups, columns of a
    panel)."""

    path: Path
    depth: int
    columns: int
    words: NDArray[np.uint32] = field(repr=False)

    @cached_property
    def address(self) -> int:
        return address(self.words)


@dataclass(frozen=True, eq=False)
class HostMatrix:
    """A converted B (K, N) of int8 or bf16: in panels for a path, or, for the portable one, as the
    float32 numbers that it multiplies."""

    content: Panels | NDArray[np.float32] = field(repr=False)
    element: np.dtype[Any]
    scale: NDArray[Any] | None = field(repr=False, default=None)
    panel_scale: NDArray[np.float32] | None = field(repr=False, default=None)

    @property
    def columns(self) -> int:
        content = self.content
        return content.columns if isinstance(content, Panels) else int(content.shape[1])

    @cached_property
    def float32(self) -> NDArray[np.float32]:
        """The matrix for the portable path. Of panels it is made for the first rows of A that need
        it, and kept, as there are mostly more."""
        if isinstance(self.content, Panels):
            return unpack(self.content).astype(np.float32)
        return self.content

    def matrix(self) -> NDArray[Any]:
        """The matrix (K, N), int8 or bf16."""
        if isinstance(self.content, Panels):
            return unpack(self.content)
        return self.content.astype(self.element)


def pack(b: NDArray[Any], path: Path) -> Panels:
    """B (K, N), int8 or bf16 as the path wants it, of any layout, in panels."""
    depth, columns = b.shape
    count, groups = -(-columns // path.columns), -(-depth // path.group)
    words = aligned_empty((count, groups, path.columns), np.dtype(np.uint32))
    row, element = b.strides
    table = address(b), row, element, depth, columns, address(words)
    in_parts(_PACK[path.name], table, count, 1, words.nbytes / PACKED_PER_S)
    return Panels(path, depth, columns, words)


def product(
    a: NDArray[Any],
    b: Panels,
    out: NDArray[Any],
    scale: NDArray[np.float32] | None = None,
    spare: bool = False,
) -> NDArray[np.intp]:
    """``out = a @ b``; a (M, K) of any layout, out (M, N) with neighbouring columns.

    ======== =========== ============= ====================================================
    a        b           out           computes
    ======== =========== ============= ====================================================
    int8     int8        int32, int8   exact sums modulo 2**32, or these saturated
    any      int8        float32       with ``scale``: a quantised by rows, in float32; sums
                                       times both scales
    bfloat16 bfloat16    float32       sums in f32
    any      bfloat16    float32       a rounded to bf16, or, with b of three times a's
                                       depth, split into three terms; sums in f32
    ======== =========== ============= ====================================================

    "Any" is a float or int8 in the machine's byte order, but not float64 where it is quantised.
    ``scale`` is that of b's columns, from ``panel_scale``.

    Returns the rows that the path would not treat as it must, of which ``out`` is undefined: those
    with subnormal bf16; or all, if float32 cannot quantise one. With ``spare`` that leaves ``out``
    as it was: all rows are quantised before it is written, not a block at a time.
    """
    path, (rows, depth) = b.path, a.shape
    computed = _computed(a, b, out, scale is not None)
    row, element = a.strides
    source = address(a), row, element, _KINDS[a.dtype], depth
    fed_row = b.depth * path.fed_bytes + PAD_BYTES
    scales = None if scale is None else (np.empty(rows, np.float32), scale)
    if spare and scales is not None:
        with lent("product") as room:
            fed = room.array("rows", (rows, fed_row), INT8)
            table = *source, address(fed), fed_row, address(scales[0])
            if not in_parts(_QUANTISE[path.name], table, rows, 1, expected_s(rows, b)):
                return np.arange(rows)
            source = address(fed), fed_row, path.fed_bytes, _KINDS[INT8], depth
            return _multiply(computed, source, 0, b, out, scales)
    lies_well = element == a.itemsize and (row % CONFLICT_BYTES or rows < 4)
    if computed not in _CONVERTED and path.fed_bytes == a.itemsize and lies_well:
        fed_row = 0
    return _multiply(computed, source, fed_row, b, out, scales)


def _multiply(
    computed: str,
    source: tuple[int, ...],
    fed_row: int,
    b: Panels,
    out: NDArray[Any],
    scales: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
) -> NDArray[np.intp]:
    """As :func:`product`, of A's address, bytes to the next row and element, kind and K; its rows
    are copied ``fed_row`` bytes apart before they are multiplied, or read as they are if it is
    0."""
    path, rows, count = b.path, out.shape[0], b.words.shape[0]
    row_scale, column_scale = (0, 0) if scales is None else map(address, scales)
    marks = np.zeros(rows if path.element == BF16.name else 0, np.bool_)
    left = *source, b.depth * path.fed_bytes, fed_row, row_scale, address(marks)
    right = b.address, b.columns, column_scale
    target = address(out), out.strides[0], out.itemsize
    by_panels = rows < 2 * gemm.MOST_ROWS
    table = *left, *right, *target, rows, count, by_panels
    size, step = (count, 1) if by_panels else (rows, gemm.MOST_ROWS)
    if not in_parts(_WALKS[path.name, computed], table, size, step, expected_s(rows, b)):
        return np.arange(rows)
    return np.flatnonzero(marks) if marks.size else _ALL_DONE


def _computed(a: NDArray[Any], b: Panels, out: NDArray[Any], scaled: bool) -> str:
    """What a product computes, of the rows of the table above."""
    if b.path.element == INT8.name:
        assert scaled or a.dtype == INT8
        return "scaled" if scaled else "clipped" if out.dtype == INT8 else "sums"
    if b.depth != a.shape[1]:
        assert b.depth == 3 * a.shape[1]
        return "split"
    return "sums" if a.dtype == BF16 else "rounded"


def expected_s(rows: int, b: Panels) -> float:
    """About how long one thread takes: to multiply, or to read B where rows are few."""
    return max(rows * b.depth * b.columns / b.path.rate, b.words.nbytes / READ_PER_S)


def rows_of_one_thread(b: Panels) -> int:
    """The most rows of A whose product is not worth a second thread."""
    if expected_s(0, b) >= WORTH_S:
        return 0
    return int(WORTH_S * b.path.rate / max(1, b.depth * b.columns))


def unpack(b: Panels) -> NDArray[Any]:
    """The matrix (K, N), int8 or bf16, that was packed."""
    count, groups, columns = b.words.shape
    elements = b.words.view(_FED[b.path.name]).reshape(count, groups, columns, b.path.group)
    if b.path.name == "avx512vnni":
        elements = elements ^ np.int8(-128)
    rows = elements.transpose(1, 3, 0, 2).reshape(groups * b.path.group, count * columns)
    return np.array(rows[: b.depth, : b.columns], b.path.element, order="C")


def suits(b: NDArray[Any], path: Path) -> bool:
    """Whether the path treats all values of B as it must: one for bf16 takes subnormals for 0."""
    if path.element != "bfloat16":
        return True
    bits = b.view(np.uint16) & 0x7FFF
    return not bool(((bits > 0) & (bits < 0x80)).any())


def panel_scale(scale: NDArray[Any], b: Panels) -> NDArray[np.float32]:
    """Scales of b's columns as float32, filled up to whole panels, whose vectors are read whole."""
    padded = np.zeros(b.words.shape[0] * b.words.shape[2], np.float32)
    padded[: b.columns] = scale.reshape(-1)
    return padded
