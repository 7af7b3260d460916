"""Which kernel computes a product, and why."""

from __future__ import annotations

from npu_matmul.kernel import Kernel, UnknownKernel, kernel_folders, load_variants
from npu_matmul.schedule import cover
from npu_matmul.tiler import TileGrid


def choose_kernel(
    kernel: str | Kernel | None, types: tuple[str, str, str], problem: tuple[int, ...]
) -> tuple[Kernel, str]:
    """The kernel for element types (A, B, C) and a problem (M, K, N), or (M, K, N, terms), and the
    reason: the one asked for, else the one whose cores have the least padded work each, then the
    fewest launches.

    Raises ``UnknownKernel``, ``ManifestError`` or ``KernelNotBuilt``.

    >>> int8 = ("int8", "int8", "int32")
    >>> choose_kernel(None, int8, (16, 16, 16))[0].name
    'matmul_16x16'
    """
    operands = f"{types[0]} operands"
    if isinstance(kernel, Kernel):
        if _types(kernel) != types:
            raise UnknownKernel(
                f"kernel {kernel.name!r}, variant {kernel.variant!r}: not for {operands}"
            )
        return kernel, "as asked"
    if kernel is not None:
        variant = _variant(kernel, types)
        if variant is None:
            raise UnknownKernel(f"kernel {kernel!r} has no variant for {operands}")
        variant.require_source()
        return variant, "as asked"
    grids = [TileGrid(variant, *problem) for variant in kernels_for(types)]
    if not grids:
        raise UnknownKernel(f"no kernel for {operands} was found")
    best = min(grids, key=lambda grid: (padded_work(grid), len(cover(grid))))
    if len(grids) == 1:
        return best.kernel, f"the only one for {operands}"
    return best.kernel, f"least padded work per core of {len(grids)}"


def kernels_for(types: tuple[str, str, str]) -> list[Kernel]:
    """Every kernel that has a variant for these element types of A, B and C, and its source."""
    variants = [_variant(name, types) for name in kernel_folders()]
    return [variant for variant in variants if variant and variant.source.is_file()]


def padded_work(grid: TileGrid) -> int:
    """Multiplications of one core, padding included."""
    tile = grid.kernel.tile
    return grid.Mb * tile.m * grid.Kt * tile.k * grid.Nb * tile.n


def _variant(name: str, types: tuple[str, str, str]) -> Kernel | None:
    return next((v for v in load_variants(name).values() if _types(v) == types), None)


def _types(kernel: Kernel) -> tuple[str, str, str]:
    return kernel.types.a, kernel.types.b, kernel.types.c
