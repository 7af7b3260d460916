"""A row as the manifest of a kernel: what its author starts from."""

from __future__ import annotations

import json
from typing import Any

from npu_matmul.explore.found import Found, Row
from npu_matmul.kernel import Kernel


def manifest(found: Found) -> str:
    """The ``kernel.toml`` of the fastest row whose C is the sums, on the shipped core function."""
    row = found.best
    return manifest_text(row.kernel, _summary(found, row))


def manifest_text(kernel: Kernel, summary: str) -> str:
    """A manifest with one variant; the source is named where it is.

    A string of TOML is written as one of JSON, whose escapes are among TOML's.
    """
    parts = ("types", "tile", "mmul", "blocking", "grid", "depths")
    lines = [
        f"summary = {json.dumps(summary)}",
        f"targets = {json.dumps(list(kernel.targets))}",
        "",
        f"[variants.{kernel.variant}]",
        *(f"{part} = {_inline(vars(getattr(kernel, part)))}" for part in parts),
        f"stack_bytes = {kernel.stack_bytes}",
        f"symbols = {_inline(vars(kernel.symbols))}",
        f"source = {json.dumps(str(kernel.source.resolve()))}",
    ]
    return "\n".join(lines) + "\n"


def _inline(fields: dict[str, Any]) -> str:
    return f"{{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in fields.items())} }}"


def _summary(found: Found, row: Row) -> str:
    cores, tile, ranking = row.kernel.grid, row.kernel.tile, found.ranking
    return (
        f"{cores.rows}x{cores.columns} cores, {tile.m}x{tile.k}x{tile.n} tiles: of "
        f"{ranking.seconds.size:,} candidates the fastest as modelled for {ranking.products.name}, "
        f"whose C is the sums"
    )
