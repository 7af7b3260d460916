"""Which kernel computes a product, and why."""

from __future__ import annotations

from npu_matmul.kernel import Kernel, UnknownKernel, kernel_folders, load_variants
from npu_matmul.schedule import cover
from npu_matmul.tiler import TileGrid


def choose_kernel(kernel: str | Kernel | None, problem: tuple[int, int, int]) -> tuple[Kernel, str]:
    """The int8 kernel for a problem (M, K, N) and the reason: the one asked for, else the least
    padded work, then the fewest launches.

    Raises ``UnknownKernel``, ``ManifestError`` or ``KernelNotBuilt``.

    >>> choose_kernel("matmul_16x16", (100, 64, 64))[1]
    'as asked'
    """
    if isinstance(kernel, Kernel):
        return kernel, "as asked"
    if kernel is not None:
        variant = _int8_variant(kernel)
        if variant is None:
            raise UnknownKernel(f"kernel {kernel!r} has no variant for int8 operands")
        variant.require_source()
        return variant, "as asked"
    found = [variant for name in kernel_folders() if (variant := _int8_variant(name)) is not None]
    candidates = [candidate for candidate in found if candidate.source.is_file()]
    if not candidates:
        raise UnknownKernel("no kernel for int8 operands was found")
    if len(candidates) == 1:
        return candidates[0], "the only one for int8"
    grids = [TileGrid(candidate, *problem) for candidate in candidates]
    best = min(grids, key=lambda grid: (grid.padding, len(cover(grid))))
    return best.kernel, f"least padded of {len(candidates)}"


def _int8_variant(name: str) -> Kernel | None:
    types = ("int8", "int8", "int32")
    variants = load_variants(name).values()
    return next((v for v in variants if (v.types.a, v.types.b, v.types.c) == types), None)
