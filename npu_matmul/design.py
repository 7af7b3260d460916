"""Writes an overlay's design as MLIR text, from its manifest: one generator for every kernel.

The text is what the standard toolchain compiles, what the emulator runs and what the design rules
check::

    shim i  --A of core row i--->     memtile i  --broadcast along core row i-->    cores (0.., i)
    shim j  --B of core column j-->   memtile j  --broadcast down core column j-->  cores (j, 0..)
    cores (j, 0..)  --C-->  memtile j (join)  --C of core column j-->  shim j

Each core repeats: acquire C; acquire A and B; read the runtime parameter; C = A @ B; release A and
B; then for the remaining steps of K acquire A and B, C += A @ B, release; release C. The first
step stands before the loop because acquire and release must balance within each block, and the
parameter is read after the first acquire of an input, so that it can be rewritten between
launches.
"""

from __future__ import annotations

from functools import lru_cache

from npu_matmul.kernel import Kernel
from npu_matmul.sequence import MLIR_TYPES, Sequence, Syntax, to_mlir
from npu_matmul.target import FIRST_CORE_ROW, MEMTILE_ROW, SHIM_ROW, TARGETS

MEMTILE_DEPTH = 2  # elements of each FIFO in a memtile, so that filling and draining overlap
PARAMETER_WORDS = 16  # 64 B: keeps the buffers after it at a multiple of 32 B, as vector loads need

NEVER_ENDS = (1 << 63) - 1


def a_input(row: int) -> str:
    """The object FIFO that brings A of a core row into the array."""
    return f"A_L3L2_{row}"


def b_input(column: int) -> str:
    """The object FIFO that brings B of a core column into the array."""
    return f"B_L3L2_{column}"


def c_output(column: int) -> str:
    """The object FIFO that takes C of a core column out of the array."""
    return f"C_L2L3_{column}"


def parameter(column: int, row: int) -> str:
    """The buffer whose word 0 holds the number of K steps of a core."""
    return f"rtp_{column}_{row}"


@lru_cache(maxsize=64)
def design_text(
    kernel: Kernel,
    target: str = "npu1",
    sequence: Sequence | None = None,
    syntax: Syntax = "1.3",
) -> str:
    """The module of a kernel's overlay, with a runtime sequence in it when one is given.

    Without one, the text is the same in either syntax.
    """
    rows, columns = range(kernel.grid.rows), range(kernel.grid.columns)
    parts = [
        _tiles(kernel),
        _functions(kernel),
        *(_a_fifos(kernel, row) for row in rows),
        *(_b_fifos(kernel, column) for column in columns),
        *(_c_fifos(kernel, column) for column in columns),
        *(_core(kernel, column, row) for column in columns for row in rows),
    ]
    if sequence is not None:
        parts.append(to_mlir(sequence, "", syntax))
    partition = TARGETS[target].partition(kernel.grid.columns)
    body = "".join(f"    {line}\n" if line else "\n" for line in "".join(parts).splitlines())
    return f"module {{\n  aie.device({partition}) {{\n{body}  }}\n}}\n"


def _memrefs(kernel: Kernel) -> tuple[str, str, str]:
    tile, types = kernel.tile, kernel.types
    sizes = (tile.m * tile.k, types.a), (tile.k * tile.n, types.b), (tile.m * tile.n, types.c)
    a, b, c = (f"memref<{elements}x{MLIR_TYPES[name]}>" for elements, name in sizes)
    return a, b, c


def _tiles(kernel: Kernel) -> str:
    text = ""
    for column in range(kernel.grid.columns):
        text += f"%shim{column} = aie.tile({column}, {SHIM_ROW})\n"
        text += f"%mem{column} = aie.tile({column}, {MEMTILE_ROW})\n"
        for row in range(kernel.grid.rows):
            text += f"%core{column}_{row} = aie.tile({column}, {FIRST_CORE_ROW + row})\n"
    return text


def _functions(kernel: Kernel) -> str:
    arguments = ", ".join(_memrefs(kernel))
    attributes = f'attributes {{link_with = "{kernel.source.stem}.o"}}'
    symbols = (kernel.symbols.first, kernel.symbols.next)
    return "".join(f"func.func private @{symbol}({arguments}) {attributes}\n" for symbol in symbols)


def _fifo(name: str, producer: str, consumers: list[str], depths: list[int], memref: str) -> str:
    tiles = ", ".join(f"%{tile}" for tile in consumers)
    depth_list = ", ".join(map(str, depths))
    return (
        f"aie.objectfifo @{name}(%{producer}, {{{tiles}}}, [{depth_list}]) "
        f": !aie.objectfifo<{memref}>\n"
    )


def _input_fifos(operand: str, index: int, cores: list[str], depth: int, memref: str) -> str:
    outside, inside = f"{operand}_L3L2_{index}", f"{operand}_L2L1_{index}"
    memtile, depths = f"mem{index}", [MEMTILE_DEPTH, *[depth] * len(cores)]
    text = _fifo(outside, f"shim{index}", [memtile], [MEMTILE_DEPTH, MEMTILE_DEPTH], memref)
    text += _fifo(inside, memtile, cores, depths, memref)
    return text + f"aie.objectfifo.link [@{outside}] -> [@{inside}]([] [])\n"


def _a_fifos(kernel: Kernel, row: int) -> str:
    cores = [f"core{column}_{row}" for column in range(kernel.grid.columns)]
    return _input_fifos("A", row, cores, kernel.depths.a, _memrefs(kernel)[0])


def _b_fifos(kernel: Kernel, column: int) -> str:
    cores = [f"core{column}_{row}" for row in range(kernel.grid.rows)]
    return _input_fifos("B", column, cores, kernel.depths.b, _memrefs(kernel)[1])


def _c_fifos(kernel: Kernel, column: int) -> str:
    rows, elements = kernel.grid.rows, kernel.tile.m * kernel.tile.n
    pieces = [f"C_L1L2_{column}_{row}" for row in range(rows)]
    depths = [kernel.depths.c, MEMTILE_DEPTH]
    text = ""
    for row, piece in enumerate(pieces):
        text += _fifo(piece, f"core{column}_{row}", [f"mem{column}"], depths, _memrefs(kernel)[2])
    whole = f"memref<{rows * elements}x{MLIR_TYPES[kernel.types.c]}>"
    text += _fifo(
        c_output(column), f"mem{column}", [f"shim{column}"], [MEMTILE_DEPTH, MEMTILE_DEPTH], whole
    )
    offsets = ", ".join(str(row * elements) for row in range(rows)) if rows > 1 else ""
    sources = ", ".join(f"@{piece}" for piece in pieces)
    return text + f"aie.objectfifo.link [{sources}] -> [@{c_output(column)}]([{offsets}] [])\n"


def _core(kernel: Kernel, column: int, row: int) -> str:
    a, b, c = _memrefs(kernel)
    name = parameter(column, row)
    address = f"address = {kernel.stack_bytes} : i32"
    memref = f"memref<{PARAMETER_WORDS}xi32>"
    attributes = f"stack_size = {kernel.stack_bytes} : i32, dynamic_objfifo_lowering = true"
    return (
        f'%{name} = aie.buffer(%core{column}_{row}) {{sym_name = "{name}", {address}}} : {memref}\n'
        f"aie.core(%core{column}_{row}) {{\n"
        "  %c0 = arith.constant 0 : index\n"
        "  %c1 = arith.constant 1 : index\n"
        f"  %max = arith.constant {NEVER_ENDS} : index\n"
        "  scf.for %block = %c0 to %max step %c1 {\n"
        + _acquire("c", f"C_L1L2_{column}_{row}", "Produce", c, "    ")
        + _acquire("a", f"A_L2L1_{row}", "Consume", a, "    ")
        + f"    %word = memref.load %{name}[%c0] : {memref}\n"
        + "    %steps = arith.index_cast %word : i32 to index\n"
        + _acquire("b", f"B_L2L1_{column}", "Consume", b, "    ")
        + _product(kernel, kernel.symbols.first, "a", "b", column, row, "    ")
        + "    scf.for %step = %c1 to %steps step %c1 {\n"
        + _acquire("ak", f"A_L2L1_{row}", "Consume", a, "      ")
        + _acquire("bk", f"B_L2L1_{column}", "Consume", b, "      ")
        + _product(kernel, kernel.symbols.next, "ak", "bk", column, row, "      ")
        + "    }\n"
        + f"    aie.objectfifo.release @C_L1L2_{column}_{row}(Produce, 1)\n"
        + f"  }}\n  aie.end\n}} {{{attributes}}}\n"
    )


def _acquire(name: str, fifo: str, port: str, memref: str, indent: str) -> str:
    subview = f"!aie.objectfifosubview<{memref}>"
    return (
        f"{indent}%{name}_view = aie.objectfifo.acquire @{fifo}({port}, 1) : {subview}\n"
        f"{indent}%{name} = aie.objectfifo.subview.access %{name}_view[0] : {subview} -> {memref}\n"
    )


def _product(
    kernel: Kernel, symbol: str, a: str, b: str, column: int, row: int, indent: str
) -> str:
    return (
        f"{indent}func.call @{symbol}(%{a}, %{b}, %c) : ({', '.join(_memrefs(kernel))}) -> ()\n"
        f"{indent}aie.objectfifo.release @A_L2L1_{row}(Consume, 1)\n"
        f"{indent}aie.objectfifo.release @B_L2L1_{column}(Consume, 1)\n"
    )
