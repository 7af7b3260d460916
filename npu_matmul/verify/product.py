"""Which product a module computes, and what its buffers must hold after a launch.

Nothing of this looks at how the module moves data: the C function that cores call gives the tiles
(or the kernel whose symbols these are), the names of shim channels say what they carry, the runtime
sequence says which bytes, and NumPy multiplies.

A channel's name begins with its operand: A of core row i enters as ``a..i``, B of core column j as
``b..j``, C of core column j leaves as ``c..j``, joined from the first core row on; a number may be
left out where there is only one. So do this project's kernels, and mlir-aie's examples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects import func, memref

from npu_matmul.emulator.symbols import models
from npu_matmul.kernel import (
    CoreGrid,
    Depths,
    Kernel,
    ManifestError,
    Mmul,
    Symbols,
    TileShape,
    Types,
    kernel_folders,
    load_variants,
)
from npu_matmul.lowered.core import Symbol
from npu_matmul.mlir import aie
from npu_matmul.mlir.elaborate import elements_of
from npu_matmul.overlay import Overlay, Tile

Arguments = tuple[tuple[int, str], ...]  # elements and dtype of each memref that a function takes

FIRST, NEXT = ("r", "r", "w"), ("r", "r", "rw")
PRODUCTS = ("matmul", "mm")  # C += A @ B, by mlir-aie's names: matmul_i8_i32, say
ALLOCATED = "_shim_alloc"  # what lowering adds to a FIFO's name at a shim


class NoProduct(ValueError):
    """A module whose values cannot be compared with a product; the message says why."""


@dataclass(frozen=True)
class Product:
    """C = A @ B over a grid of cores, each with tiles of the kernel's shape.

    ``a``, ``b``, ``c`` name the shim channels by core row, column and column; ``parameters`` the
    buffer, by core, whose first word is the number of steps in K.
    """

    kernel: Kernel
    symbols: tuple[str, ...]  # those that multiply
    cores: tuple[tuple[Tile, ...], ...]  # by row, then column
    a: tuple[str, ...]
    b: tuple[str, ...]
    c: tuple[str, ...]
    parameters: Mapping[Tile, str]

    def __str__(self) -> str:
        tile, types = self.kernel.tile, self.kernel.types
        grid = f"{len(self.cores)}x{len(self.cores[0])} cores"
        return f"C = A @ B, {types.a} to {types.c}, tiles {tile.m}x{tile.k}x{tile.n}, {grid}"

    def expected(
        self, sent: Mapping[str, NDArray[Any]], steps: Mapping[Tile, int]
    ) -> dict[str, NDArray[Any]]:
        """What each channel of C brings, from the elements that each of A and B sends.

        Raises :class:`NoProduct` where the amounts do not fit together.
        """
        tile, block = self.kernel.tile, self.kernel.mmul
        a_tiles = {n: _plain(sent[n], tile.m, tile.k, block.r, block.s) for n in self.a}
        b_tiles = {n: _plain(sent[n], tile.k, tile.n, block.s, block.t) for n in self.b}
        found = {}
        for column, name in enumerate(self.c):
            rows = []
            for row, cores in enumerate(self.cores):
                left, right = a_tiles[self.a[row]], b_tiles[self.b[column]]
                k = steps.get(cores[column], 0)
                if not k or len(left) != len(right) or len(left) % k:
                    raise NoProduct(
                        f"{cores[column]} gets {len(left)} tiles of A and {len(right)} of B for "
                        f"{k} steps"
                    )
                rows.append(self._tiles(left, right, k))
            found[name] = np.stack(rows, axis=1).reshape(-1)
        return found

    def _tiles(self, left: NDArray[Any], right: NDArray[Any], k: int) -> NDArray[Any]:
        """The C tiles of one core, in its element order; sums are exact in float64."""
        tile, block = self.kernel.tile, self.kernel.mmul
        count = len(left) // k
        wide = left.reshape(count, k, tile.m, tile.k).swapaxes(1, 2).reshape(count, tile.m, -1)
        tall = right.reshape(count, k * tile.k, tile.n)
        c = wide.astype(np.float64) @ tall.astype(np.float64)
        shape = count, tile.m // block.r, block.r, tile.n // block.t, block.t
        blocks = c.reshape(shape).swapaxes(2, 3).reshape(count, -1)
        if self.kernel.c_dtype.kind == "i":
            blocks = blocks.astype(np.int64)  # INT32 sums wrap around
        found: NDArray[Any] = blocks.astype(self.kernel.c_dtype)
        return found

    def place_of(self, name: str, element: int) -> str:
        """Whose tile an element of a channel of C belongs to, and where in the tile it stands."""
        size = self.kernel.tile.m * self.kernel.tile.n
        number, element = divmod(element, size)
        block, row = divmod(number, len(self.cores))
        core = self.cores[row][self.c.index(name)]
        return f"C tile {block} of {core}, element {element} of {size}"


def find_symbols(
    device: aie.DeviceOp, built: Kernel | None = None
) -> tuple[dict[str, Symbol], Kernel | None, tuple[str, ...]]:
    """Models of the C functions that a device's cores call, and what they multiply.

    A kernel's own symbols have its models: those of ``built``, or of the first kernel found whose
    symbols and tiles these are; else names tell: ``zero..`` clears its argument,
    ``copy..`` and ``passthrough..`` copy the first to the second, ``matmul..`` and ``mm..`` add to
    the third the product of the others. Raises :class:`NoProduct` for any other name.
    """
    called = {op.callee.string_value() for op in device.walk() if isinstance(op, func.CallOp)}
    functions: dict[str, Arguments] = {
        op.sym_name.data: tuple(
            (elements, dtype.name)
            for elements, dtype in (elements_of(kind, op) for kind in op.function_type.inputs)
        )
        for op in device.body.block.ops
        if isinstance(op, func.FuncOp) and op.sym_name.data in called
    }
    candidates = _kernels() if built is None else [built]
    kernel = next((k for k in candidates if _declared(k, functions)), None)
    symbols: dict[str, Symbol] = {}
    products: list[str] = []
    for name, arguments in functions.items():
        if kernel is not None and name in (kernel.symbols.first, kernel.symbols.next):
            access = FIRST if name == kernel.symbols.first else NEXT
            symbols[name] = Symbol(models(kernel)[name], access)
            products.append(name)
        elif name.startswith("zero") and len(arguments) == 1:
            symbols[name] = Symbol(_zero, ("w",))
        elif name.startswith(("copy", "passthrough")) and len(arguments) == 2:
            symbols[name] = Symbol(_copy, ("r", "w"))
        elif name.startswith(PRODUCTS) and len(arguments) == 3:
            kernel = _assumed(name, arguments)
            symbols[name] = Symbol(models(kernel)[name], NEXT)
            products.append(name)
        else:
            raise NoProduct(
                f"there is no model of @{name} with {len(arguments)} buffers; known are the "
                "symbols of the kernels found, and by name zero..(c), copy..(a, b), "
                "matmul..(a, b, c) and mm..(a, b, c)"
            )
    return symbols, kernel, tuple(products)


def find_product(
    device: aie.DeviceOp, overlay: Overlay, kernel: Kernel | None, symbols: tuple[str, ...]
) -> Product:
    """The product that a module computes; raises :class:`NoProduct`."""
    if kernel is None:
        raise NoProduct("no core calls a function that multiplies")
    tiles: dict[Any, Tile] = {
        op.result: Tile(op.col.value.data, op.row.value.data)
        for op in device.body.block.ops
        if isinstance(op, aie.TileOp)
    }
    cores = [op for op in device.body.block.ops if isinstance(op, aie.CoreOp)]
    grid = _grid([tiles[core.tile] for core in cores])
    names = {"a": "MM2S", "b": "MM2S", "c": "S2MM"}
    found: dict[str, dict[int, str]] = {operand: {} for operand in names}
    for name, channel in overlay.channels.items():
        operand, number = name[:1].lower(), re.search(r"(\d+)$", name.removesuffix(ALLOCATED))
        if names.get(operand) != channel.direction:
            raise NoProduct(f"@{name} does not say by its name that it carries A, B or C")
        found[operand][int(number[1]) if number else 0] = name
    counts = {"a": len(grid), "b": len(grid[0]), "c": len(grid[0])}
    for operand, count in counts.items():
        if sorted(found[operand]) != list(range(count)):
            raise NoProduct(
                f"{count} channels of {operand.upper()} are needed for "
                f"{len(grid)}x{len(grid[0])} cores, numbered from 0; there are "
                f"{', '.join(found[operand].values()) or 'none'}"
            )
    a, b, c = (tuple(found[o][n] for n in range(counts[o])) for o in names)
    parameters = {tiles[core.tile]: name for core in cores for name in _parameters(core)}
    if len(parameters) != len(cores):
        raise NoProduct("not every core has a runtime parameter for the number of steps in K")
    return Product(kernel, symbols, grid, a, b, c, parameters)


def operands(dtype: np.dtype[Any], count: int, random: np.random.Generator) -> NDArray[Any]:
    """Random signed elements, extremes among them; of floats, integers whose sums are exact."""
    if dtype.kind == "i":
        limits = np.iinfo(dtype)
        drawn = random.integers(limits.min, limits.max, count, dtype=dtype, endpoint=True)
        drawn[random.integers(0, count, max(1, count // 64))] = limits.min
        return drawn
    return random.integers(-8, 9, count).astype(np.float32).astype(dtype)


def _grid(tiles: list[Tile]) -> tuple[tuple[Tile, ...], ...]:
    columns = sorted({tile.column for tile in tiles})
    rows = sorted({tile.row for tile in tiles})
    if not tiles or len(tiles) != len(columns) * len(rows):
        raise NoProduct(f"{len(tiles)} cores are not a grid of rows and columns")
    return tuple(tuple(Tile(column, row) for column in columns) for row in rows)


def _parameters(core: aie.CoreOp) -> set[str]:
    """Buffers that a core loads words of, and never stores any into."""
    loaded: set[str] = set()
    stored: set[str] = set()
    for op in core.body.walk():
        if isinstance(op, memref.LoadOp | memref.StoreOp):
            owner = op.memref.owner
            if isinstance(owner, aie.BufferOp):
                (loaded if isinstance(op, memref.LoadOp) else stored).add(owner.sym_name.data)
    return loaded - stored


def _kernels() -> Iterator[Kernel]:
    for name in kernel_folders():
        try:
            yield from load_variants(name).values()
        except ManifestError:
            continue  # of somebody's kernel that has nothing to do with this module


def _declared(kernel: Kernel, functions: Mapping[str, Arguments]) -> bool:
    """Whether a kernel's symbols are there, with its tiles."""
    tile, types = kernel.tile, kernel.types
    arguments = (
        (tile.m * tile.k, types.a),
        (tile.k * tile.n, types.b),
        (tile.m * tile.n, types.c),
    )
    names = kernel.symbols.first, kernel.symbols.next
    return all(functions.get(symbol) == arguments for symbol in names)


def _assumed(name: str, arguments: Arguments) -> Kernel:
    """A kernel of the tiles that three buffers imply: m*k, k*n and m*n give m, k and n."""
    (a, a_type), (b, b_type), (c, c_type) = arguments
    m, k, n = math.isqrt(a * c // b), math.isqrt(a * b // c), math.isqrt(b * c // a)
    if (m * k, k * n, m * n) != (a, b, c):
        raise NoProduct(f"@{name}: buffers of {a}, {b} and {c} elements are no tiles of a product")
    known = {("int8", "int8", "int32"): (4, 8, 8), ("bfloat16", "bfloat16", "float32"): (4, 8, 4)}
    blocks = known.get((a_type, b_type, c_type))
    if blocks is None or any(size % block for size, block in zip((m, k, n), blocks, strict=True)):
        raise NoProduct(
            f"@{name}: there is no model of {a_type} times {b_type} to {c_type} with tiles "
            f"{m}x{k}x{n}"
        )
    return Kernel(
        name=name,
        variant="",
        summary="",
        targets=(),
        types=Types(a_type, b_type, c_type),
        tile=TileShape(m, k, n),
        mmul=Mmul(*blocks),
        grid=CoreGrid(1, 1),
        depths=Depths(1, 1, 1),
        stack_bytes=0,
        symbols=Symbols(f"{name} (first)", name),
        source=Path(),
    )


def _plain(tiles: NDArray[Any], rows: int, columns: int, r: int, s: int) -> NDArray[Any]:
    """Tiles of row-major blocks (r, s) as plain matrices."""
    if tiles.size % (rows * columns):
        raise NoProduct(f"{tiles.size} elements are no whole tiles of {rows}x{columns}")
    blocks = tiles.reshape(-1, rows // r, columns // s, r, s)
    found: NDArray[Any] = blocks.swapaxes(2, 3).reshape(-1, rows, columns)
    return found


def _zero(c: NDArray[Any]) -> None:
    c[:] = 0


def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    target[:] = source
