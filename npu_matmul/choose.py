"""Which kernel computes a product, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

from npu_matmul.kernel import Kernel, UnknownKernel, kernels_named, load_variants
from npu_matmul.schedule import cover
from npu_matmul.target import NPU1, Target
from npu_matmul.tiler import TileGrid

# A packed B is chosen a kernel before its A is known. So many rows fill every kernel's blocks, so
# that the choice is the one for a large A.
MANY_ROWS = 1024


def choose_kernel(
    kernel: str | Kernel | None,
    types: tuple[str, str, str],
    problem: tuple[int, ...],
    target: Target = NPU1,
    can_load: Callable[[Kernel], bool] = lambda _: True,
) -> tuple[Kernel, str]:
    """The kernel for element types (A, B, C), a problem (M, K, N), or (M, K, N, terms), and a
    target, and the reason: the one asked for, else the one whose cores have the least padded work
    each, then the fewest launches. Where some can be loaded by the device, it is one of them.

    Raises ``UnknownKernel``, ``ManifestError`` or ``KernelNotBuilt``.

    >>> int8 = ("int8", "int8", "int32")
    >>> choose_kernel(None, int8, (16, 16, 16))[0].name
    'matmul_16x16'
    """
    if kernel is not None:
        return _asked_for(kernel, types, target), "as asked"
    kernels = kernels_for(types, target)
    kernels = list(filter(can_load, kernels)) or kernels
    grids = [TileGrid(variant, *problem) for variant in kernels]
    if not grids:
        raise UnknownKernel(f"no kernel for {types[0]} operands on {target.name} was found")
    if len(grids) == 1:
        return grids[0].kernel, f"the only one for {types[0]} operands"
    least = min(map(padded_work, grids))
    equal = [grid for grid in grids if padded_work(grid) == least]
    best = min(equal, key=lambda grid: len(cover(grid)))
    reason = f"least padded work per core of {len(grids)}"
    return best.kernel, reason if len(equal) == 1 else f"{reason}, then fewest launches"


def kernels_for(types: tuple[str, str, str], target: Target = NPU1) -> list[Kernel]:
    """Every kernel that is for these element types of A, B and C and this target, and has its
    source."""
    variants = kernels_named()
    return [v for v in variants if _is_for(v, types, target) and v.source.is_file()]


def padded_work(grid: TileGrid) -> int:
    """Multiplications of one core, padding included."""
    tile = grid.kernel.tile
    return grid.Mb * tile.m * grid.Kt * tile.k * grid.Nb * tile.n


def _asked_for(kernel: str | Kernel, types: tuple[str, str, str], target: Target) -> Kernel:
    variants = [kernel] if isinstance(kernel, Kernel) else load_variants(kernel).values()
    for variant in variants:
        if _is_for(variant, types, target):
            if isinstance(kernel, str):
                variant.require_source()
            return variant
    name = repr(kernel)
    if isinstance(kernel, Kernel):
        name = f"{kernel.name!r}, variant {kernel.variant!r}:"
    raise UnknownKernel(
        f"kernel {name} has nothing for {types[0]} operands on {target.name}; "
        f"it is for {', '.join(_shown(variant) for variant in variants)}"
    )


def _is_for(kernel: Kernel, types: tuple[str, str, str], target: Target) -> bool:
    return astuple(kernel.types) == types and target.name in kernel.targets


def _shown(kernel: Kernel) -> str:
    return f"{kernel.types.a} on {' or '.join(kernel.targets)}"
