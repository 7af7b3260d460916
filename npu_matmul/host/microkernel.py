"""The innermost loops of a product on the host: a few rows of C in vector registers over all of K.

A product is cut into panels of ``2 * lanes`` columns. The operands come in *groups*, words of four
bytes along K: four int8, or two int16 or bf16. For each group the kernel loads two vectors of B,
which is packed as (panel, group, column, 4 bytes), and broadcasts one word of each row of A, which
is used as it lies. One instruction multiplies a group and adds it to the sums.

numba cannot express this: it would spill the sums to memory. So each kernel is one intrinsic,
whose whole loop is LLVM IR. It holds a loop for every number of rows in ``ROWS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from npu_matmul.host import paths
from npu_matmul.host.elements import Value, call, narrowed
from npu_matmul.host.pointers import LINE_BYTES

ROWS = (1, 2, 4, 6, 8, 10, 12, 14)  # 14 rows of two vectors are 28 of AVX-512's 32 registers
WORD = ir.IntType(32)
INT = ir.IntType(64)
MOVED_UP = 128  # elements of B, which vpdpbusd takes as unsigned

Dot = Callable[[ir.IRBuilder, Value, Value, Value], Value]  # sums, group of A, group of B


@dataclass(frozen=True)
class Unit:
    """An instruction that multiplies and adds groups: its lanes, sums, and the most rows that fit
    in registers."""

    lanes: int
    sum_type: Any
    most_rows: int
    dot: Dot

    @property
    def sums(self) -> ir.VectorType:
        return ir.VectorType(self.sum_type, self.lanes)

    @property
    def groups(self) -> ir.VectorType:
        return ir.VectorType(WORD, self.lanes)


def _vpdpbusd(b: ir.IRBuilder, sums: Value, a: Value, panel: Value) -> Value:
    """Four products of unsigned bytes (of B, moved up by 128) with signed ones (of A)."""
    return call(b, "llvm.x86.avx512.vpdpbusd.512", sums.type, sums, panel, a)


def _vdpbf16ps(b: ir.IRBuilder, sums: Value, a: Value, panel: Value) -> Value:
    return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", sums.type, sums, a, panel)


def _vpmaddwd(b: ir.IRBuilder, sums: Value, a: Value, panel: Value) -> Value:
    """Two products of int16, which cannot overflow, as both came from int8.

    Written as assembly: LLVM would put instructions of VNNI in its place where there are some.
    """
    kind = ir.FunctionType(sums.type, [a.type, panel.type])
    binding.initialize_native_asmparser()
    both = ir.InlineAsm(kind, "vpmaddwd $2, $1, $0", "=x,x,x")
    return b.add(sums, b.call(both, [a, panel]))


VNNI = Unit(paths.VNNI.columns // 2, WORD, 14, _vpdpbusd)
BF16 = Unit(paths.BF16.columns // 2, ir.FloatType(), 14, _vdpbf16ps)
AVX2 = Unit(paths.AVX2.columns // 2, WORD, 6, _vpmaddwd)


@dataclass(frozen=True)
class Tile:
    """Where a kernel stores: row ``i``, vector ``v`` of the panel, and the lanes within C."""

    c: Value
    c_row_bytes: Value
    columns: Value
    row_scale: Value
    column_scale: Value


def load(b: ir.IRBuilder, address: Value, kind: Any) -> Value:
    return b.load(b.inttoptr(address, ir.PointerType(kind)), align=1)


def splat(b: ir.IRBuilder, value: Value, lanes: int) -> Value:
    kind = ir.VectorType(value.type, lanes)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
    zeros = ir.Constant(ir.VectorType(WORD, lanes), [0] * lanes)
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _store(b: ir.IRBuilder, unit: Unit, tile: Tile, row: Value, v: int, vector: Value) -> None:
    """One vector into C; the lanes beyond the last column are left out."""
    lanes, element = unit.lanes, vector.type.element
    size = element.width // 8 if isinstance(element, ir.IntType) else 4
    offset = b.add(b.mul(row, tile.c_row_bytes), INT(v * lanes * size))
    where = b.inttoptr(b.add(tile.c, offset), ir.PointerType(vector.type))
    whole = b.icmp_signed(">=", tile.columns, INT((v + 1) * lanes))
    with b.if_else(whole) as (all_lanes, some_lanes):
        with all_lanes:
            b.store(vector, where, align=1)
        with some_lanes:
            left = b.trunc(b.sub(tile.columns, INT(v * lanes)), WORD)
            lane = ir.Constant(ir.VectorType(WORD, lanes), list(range(lanes)))
            mask = b.icmp_signed("<", lane, splat(b, left, lanes))
            letter = "f" if element == ir.FloatType() else "i"
            name = f"llvm.masked.store.v{lanes}{letter}{size * 8}.p0"
            call(b, name, ir.VoidType(), vector, where, WORD(1), mask)


def _sums(b: ir.IRBuilder, unit: Unit, tile: Tile, row: Value, v: int, sums: Value) -> None:
    _store(b, unit, tile, row, v, sums)


def _clipped(b: ir.IRBuilder, unit: Unit, tile: Tile, row: Value, v: int, sums: Value) -> None:
    """Saturated to int8."""
    _store(b, unit, tile, row, v, narrowed(b, sums, "int8"))


def _scaled(b: ir.IRBuilder, unit: Unit, tile: Tile, row: Value, v: int, sums: Value) -> None:
    """As f32, times the scales of A's row and B's columns."""
    kind = ir.VectorType(ir.FloatType(), unit.lanes)
    scale = load(b, b.add(tile.row_scale, b.mul(row, INT(4))), ir.FloatType())
    columns = load(b, b.add(tile.column_scale, INT(v * unit.lanes * 4)), kind)
    value = b.fmul(b.fmul(b.sitofp(sums, kind), splat(b, scale, unit.lanes)), columns)
    _store(b, unit, tile, row, v, value)


Epilogue = Callable[[ir.IRBuilder, Unit, Tile, Value, int, Value], None]


def _make(unit: Unit, epilogue: Epilogue, c_bytes: int) -> Any:
    """A kernel as an intrinsic; all arguments are int64: addresses, and sizes in bytes or words.

    ``c_bytes`` are those of an element of C, whose cache lines are asked for in the loop, so that
    they have arrived when it ends: a row of C a step, as a core waits for few lines at once.
    ``starts`` holds what the sums of each row start from (INT32), ``tails`` the last, incomplete
    word of each row of A; it is 0 where K is whole words.
    """

    @intrinsic
    def kernel(  # type: ignore[no-untyped-def]
        typingctx, rows, a, a_row_bytes, words, starts, tails, b, c, c_row_bytes, columns,
        row_scale, column_scale,
    ):  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            counts = [count for count in ROWS if count <= unit.most_rows]
            panel_bytes = 2 * unit.lanes * c_bytes

            def rows(count: int) -> None:
                _rows(builder, unit, epilogue, count, panel_bytes, args[1:])

            one_of(builder, args[0], counts, rows)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 12), codegen

    return kernel


vnni_sums = _make(VNNI, _sums, 4)
vnni_clipped = _make(VNNI, _clipped, 1)
vnni_scaled = _make(VNNI, _scaled, 4)
avx2_sums = _make(AVX2, _sums, 4)
avx2_clipped = _make(AVX2, _clipped, 1)
avx2_scaled = _make(AVX2, _scaled, 4)
bf16_sums = _make(BF16, _sums, 4)


@intrinsic
def vnni_row_sum(typingctx, address, size):  # type: ignore[no-untyped-def]
    """The sum of ``size`` int8, as INT32."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        total = sums_of_words(b, *args)
        return call(b, "llvm.vector.reduce.add.v16i32", WORD, total)

    return types.int32(types.int64, types.int64), codegen


def sums_of_words(b: ir.IRBuilder, address: Value, size: Value) -> Value:
    """64 int8 at a time as products with one."""
    sums, line = VNNI.sums, ir.VectorType(ir.IntType(8), LINE_BYTES)
    ones = ir.Constant(sums, [0x01010101] * VNNI.lanes)
    total = cgutils.alloca_once_value(b, ir.Constant(sums, [0] * VNNI.lanes))
    lane = ir.Constant(line, list(range(LINE_BYTES)))
    with cgutils.for_range_slice(b, INT(0), size, INT(LINE_BYTES)) as (done, _):
        where = b.inttoptr(b.add(address, done), ir.PointerType(line))
        left, most = b.sub(size, done), ir.Constant(INT, LINE_BYTES)
        left = b.trunc(b.select(b.icmp_signed("<", left, most), left, most), line.element)
        mask = b.icmp_signed("<", lane, splat(b, left, LINE_BYTES))
        nothing = ir.Constant(line, None)
        few = call(b, "llvm.masked.load.v64i8.p0", line, where, WORD(1), mask, nothing)
        b.store(_vpdpbusd(b, b.load(total), b.bitcast(few, sums), ones), total)
    return b.load(total)


def one_of(
    b: ir.IRBuilder, value: Value, counts: Sequence[int], emit: Callable[[int], None]
) -> None:
    """Emit what is to be done for each of the counts that an INT64 can be; nothing for others."""
    done = b.append_basic_block("done")
    choice = b.switch(value, done)
    for count in counts:
        block = b.append_basic_block(f"count{count}")
        choice.add_case(INT(count), block)
        b.position_at_end(block)
        emit(count)
        b.branch(done)
    b.position_at_end(done)


def _ask_for(b: ir.IRBuilder, row: Value, size: int) -> None:
    """Prefetch, to be written, the cache lines that end within ``size`` bytes, and the last one.
    One that only ends here came with the panel before."""
    for last in range(min(size, LINE_BYTES) - 1, size, LINE_BYTES):
        where = b.inttoptr(b.add(row, INT(last)), ir.PointerType(ir.IntType(8)))
        call(b, "llvm.prefetch.p0", ir.VoidType(), where, WORD(1), WORD(3), WORD(1))


def _rows(
    b: ir.IRBuilder,
    unit: Unit,
    epilogue: Epilogue,
    count: int,
    panel_bytes: int,
    args: Sequence[Value],
) -> None:
    """``panel_bytes`` of each row of C are about to be written."""
    a, a_row, words, starts, tails, panel, c, c_row, columns, row_scale, column_scale = args
    rows = [b.add(a, b.mul(a_row, INT(i))) for i in range(count)]
    first = first_sums(b, unit, starts, count)

    def step(place: Value, sums: Sequence[Value]) -> list[Value]:
        row = b.select(b.icmp_signed("<", place, INT(count)), place, INT(count - 1))
        _ask_for(b, b.add(c, b.mul(c_row, row)), panel_bytes)
        lefts = [b.add(row, b.mul(place, INT(4))) for row in rows]
        return one_group(b, unit, lefts, b.add(panel, b.mul(place, INT(8 * unit.lanes))), sums)

    sums = along_k(b, words, first, step)
    sums = _with_tails(b, unit, tails, b.add(panel, b.mul(words, INT(8 * unit.lanes))), sums)
    tile = Tile(c, c_row, columns, row_scale, column_scale)
    for i in range(count):
        for v in range(2):
            epilogue(b, unit, tile, INT(i), v, sums[2 * i + v])


def first_sums(b: ir.IRBuilder, unit: Unit, starts: Value, count: int) -> list[Value]:
    """What the sums of so many rows, two vectors each, start from."""
    first = []
    for i in range(count):
        if unit.sum_type == WORD:
            start = load(b, b.add(starts, INT(4 * i)), WORD)
        else:
            start = ir.Constant(unit.sum_type, 0.0)
        first += [splat(b, start, unit.lanes)] * 2
    return first


def along_k(
    b: ir.IRBuilder,
    steps: Value,
    first: Sequence[Value],
    step: Callable[[Value, Sequence[Value]], list[Value]],
) -> list[Value]:
    """A loop whose sums stay in registers: ``first``, then what ``step`` makes of them."""
    before = b.block
    head, body, last = (b.append_basic_block(name) for name in ("head", "body", "last"))
    b.branch(head)
    b.position_at_end(head)
    place, sums = b.phi(INT), [b.phi(value.type) for value in first]
    place.add_incoming(INT(0), before)
    for phi, value in zip(sums, first, strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_signed("<", place, steps), body, last)
    b.position_at_end(body)
    for phi, value in zip(sums, step(place, sums), strict=True):
        phi.add_incoming(value, b.block)
    place.add_incoming(b.add(place, INT(1)), b.block)
    b.branch(head)
    b.position_at_end(last)
    return sums


def _with_tails(
    b: ir.IRBuilder, unit: Unit, tails: Value, panel: Value, sums: Sequence[Value]
) -> list[Value]:
    """The incomplete word of each row too, if there are any."""
    origin = b.block
    with b.if_then(b.icmp_signed("!=", tails, INT(0))):
        lefts = [b.add(tails, INT(4 * i)) for i in range(len(sums) // 2)]
        ended = one_group(b, unit, lefts, panel, sums)
        tail_block = b.block
    final = []
    for value, other in zip(sums, ended, strict=True):
        phi = b.phi(unit.sums)
        phi.add_incoming(value, origin)
        phi.add_incoming(other, tail_block)
        final.append(phi)
    return final


def one_group(
    b: ir.IRBuilder, unit: Unit, lefts: Sequence[Value], panel: Value, sums: Sequence[Value]
) -> list[Value]:
    """One group: every row's word of A with both vectors of B."""
    right = [load(b, b.add(panel, INT(v * unit.lanes * 4)), unit.groups) for v in range(2)]
    new = []
    for i, left in enumerate(lefts):
        word = splat(b, load(b, left, WORD), unit.lanes)
        new += [unit.dot(b, sums[2 * i + v], word, right[v]) for v in range(2)]
    return new
