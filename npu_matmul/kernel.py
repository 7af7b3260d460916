"""Kernel manifests: what an overlay is, in numbers.

A kernel is a folder ``kernels/NAME/`` with a manifest ``kernel.toml`` and the C++ function of its
cores. Every number of a kernel stands in its manifest and nowhere else: the design generator, the
tiler, the instruction streams and the emulated device all read the :class:`Kernel` made here.
Adding a kernel is adding a folder; ``$NPU_MATMUL_KERNELS`` names further places to look for such
folders.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import ml_dtypes
import numpy as np

from npu_matmul.target import TARGETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = "kernel.toml"
KERNELS_VARIABLE = "NPU_MATMUL_KERNELS"
ELEMENT_TYPES: dict[str, np.dtype[Any]] = {
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}


class ManifestError(ValueError):
    """A ``kernel.toml`` is malformed; the message names file, key, what was found and what is
    allowed."""


class UnknownKernel(ValueError):
    """No folder of that name holds a manifest, or the manifest has no such variant."""


class NoKernel(UnknownKernel):
    """No kernel that was found computes such a product on such an NPU; the CPU can."""


class KernelNotBuilt(RuntimeError):
    """What running the kernel needs is not there: its source, or an overlay for an NPU. ``reason``
    is the message without what to do about it."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


@dataclass(frozen=True)
class Types:
    """Element types of A, B and C (C is the accumulator's type: partial sums of K can be added)."""

    a: str
    b: str
    c: str


@dataclass(frozen=True)
class TileShape:
    """The product one call of the core function makes: (m, k) @ (k, n)."""

    m: int
    k: int
    n: int


@dataclass(frozen=True)
class Mmul:
    """The ``aie::mmul`` block (r, s) @ (s, t); tiles are stored as row-major blocks of this
    shape."""

    r: int
    s: int
    t: int


@dataclass(frozen=True)
class Blocking:
    """``mmul`` blocks of C, ``m`` down and ``n`` across, that the core function computes at once: a
    tile must be made of whole such groups. 1 x 1 where it takes any."""

    m: int
    n: int


@dataclass(frozen=True)
class CoreGrid:
    """Cores of the overlay: ``rows`` split M, ``columns`` split N."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Depths:
    """Buffers per object FIFO at the core: 2 overlaps transfer and compute, 1 does not."""

    a: int
    b: int
    c: int


@dataclass(frozen=True)
class Symbols:
    """C symbols of the core function: ``first`` is C = A @ B, ``next`` is C += A @ B."""

    first: str
    next: str


@dataclass(frozen=True)
class Kernel:
    """One overlay: a variant of a manifest.

    >>> kernel = load_kernel("matmul_16x16")
    >>> kernel.tile, kernel.a_tile_bytes, kernel.c_tile_bytes
    (TileShape(m=16, k=16, n=16), 256, 1024)
    """

    name: str
    variant: str
    summary: str
    targets: tuple[str, ...]
    types: Types
    tile: TileShape
    mmul: Mmul
    grid: CoreGrid
    depths: Depths
    stack_bytes: int
    symbols: Symbols
    source: Path
    blocking: Blocking = Blocking(1, 1)

    @property
    def a_dtype(self) -> np.dtype[Any]:
        return ELEMENT_TYPES[self.types.a]

    @property
    def b_dtype(self) -> np.dtype[Any]:
        return ELEMENT_TYPES[self.types.b]

    @property
    def c_dtype(self) -> np.dtype[Any]:
        return ELEMENT_TYPES[self.types.c]

    @property
    def a_tile_bytes(self) -> int:
        return self.tile.m * self.tile.k * self.a_dtype.itemsize

    @property
    def b_tile_bytes(self) -> int:
        return self.tile.k * self.tile.n * self.b_dtype.itemsize

    @property
    def c_tile_bytes(self) -> int:
        return self.tile.m * self.tile.n * self.c_dtype.itemsize

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of C that all cores make together, each one tile."""
        return self.tile.m * self.grid.rows, self.tile.n * self.grid.columns

    @property
    def defines(self) -> dict[str, int]:
        """Preprocessor macros the C++ source is compiled with: its sizes come from here."""
        return {"DIM_M": self.tile.m, "DIM_K": self.tile.k, "DIM_N": self.tile.n}

    def require_source(self) -> Path:
        """The C++ source, or :class:`KernelNotBuilt` when the folder has only a manifest."""
        if not self.source.is_file():
            raise KernelNotBuilt(
                f"kernel {self.name!r} has a manifest but no core function: "
                f"{self.source} is missing; "
                f"add it, or use one of: {', '.join(_runnable_names()) or '(none)'}"
            )
        return self.source


def search_path() -> list[Path]:
    """Folders searched for kernels, first match wins: ``$NPU_MATMUL_KERNELS``, then the ones
    shipped."""
    named = [Path(p) for p in os.environ.get(KERNELS_VARIABLE, "").split(os.pathsep) if p]
    package = Path(__file__).resolve().parent
    shipped = [package / "kernels", package.parent / "kernels"]
    return named + [p for p in shipped if p.is_dir()]


def kernel_folders() -> dict[str, Path]:
    """Every kernel's name and folder on the search path."""
    folders: dict[str, Path] = {}
    for place in search_path():
        for manifest in sorted(place.glob(f"*/{MANIFEST}")):
            folders.setdefault(manifest.parent.name, manifest.parent)
    return folders


def load_kernel(name: str, variant: str | None = None) -> Kernel:
    """The kernel called ``name``; ``variant`` may be left out when the manifest has only one.

    Raises :class:`UnknownKernel`, or :class:`ManifestError` when its manifest is malformed.
    """
    variants = load_variants(name)
    if variant is None and len(variants) == 1:
        return next(iter(variants.values()))
    if variant is None or variant not in variants:
        given = "no variant was given" if variant is None else f"it has no variant {variant!r}"
        raise UnknownKernel(f"kernel {name!r}: {given}; its variants are: {', '.join(variants)}")
    return variants[variant]


def load_variants(name: str) -> dict[str, Kernel]:
    """All variants of the kernel called ``name``, by their names."""
    folders = kernel_folders()
    if name not in folders:
        raise UnknownKernel(
            f"there is no kernel {name!r}; known are: {', '.join(folders)}. "
            "A kernel is a folder with a "
            f"{MANIFEST}; $NPU_MATMUL_KERNELS adds places to look"
        )
    return read_manifest(folders[name] / MANIFEST)


def kernels_named(name: str | None = None, variant: str | None = None) -> list[Kernel]:
    """One variant of a kernel, or all of them; those of every kernel where none is named."""
    if name is not None and variant is not None:
        return [load_kernel(name, variant)]
    names = kernel_folders() if name is None else [name]
    return [kernel for each in names for kernel in load_variants(each).values()]


def kernels_on(target: str) -> list[Kernel]:
    """Every kernel that is for a target, and has its source."""
    return [k for k in kernels_named() if target in k.targets and k.source.is_file()]


def no_kernel(what: str, target: str) -> NoKernel:
    """The error where none is for a target, or none of those is for ``what``."""
    others = sorted({t for k in kernels_named() for t in k.targets} - {target})
    elsewhere = f"; there are kernels for {', '.join(others)}" if others else ""
    return NoKernel(
        f"no kernel for {what} on {target} was found{elsewhere}: name a folder that has one in "
        f"${KERNELS_VARIABLE}, or use device='cpu'"
    )


def read_manifest(path: Path) -> dict[str, Kernel]:
    """All variants of the manifest at ``path``, read again only when the file has changed."""
    status = path.stat()
    return _read_manifest(path, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _read_manifest(path: Path, _version: tuple[int, int]) -> dict[str, Kernel]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not valid TOML: {error}") from None
    unknown = set(table) - {"summary", "targets", "variants"}
    if unknown:
        raise ManifestError(
            f"{path}: unknown key {sorted(unknown)[0]!r}; allowed: summary, targets, variants"
        )
    summary = _value(table.get("summary"), str, f"{path}: summary")
    targets = tuple(
        _value(t, str, f"{path}: targets")
        for t in _value(table.get("targets"), list, f"{path}: targets")
    )
    for target in targets:
        if target not in TARGETS:
            raise ManifestError(
                f"{path}: targets has {target!r}; known targets: {', '.join(TARGETS)}"
            )
    variants = _value(table.get("variants"), dict, f"{path}: variants")
    if not variants or not targets:
        raise ManifestError(f"{path}: needs at least one target and one [variants.NAME]")
    kernels = {}
    for variant, entry in variants.items():
        where = f"{path}: variants.{variant}"
        fields = _read_variant(_value(entry, dict, where), where)
        kernel = Kernel(
            name=path.parent.name,
            variant=variant,
            summary=summary,
            targets=targets,
            source=path.parent / fields.pop("source"),
            **fields,
        )
        _check(kernel, where)
        kernels[variant] = kernel
    return kernels


_PARTS = ("types", "tile", "mmul", "grid", "depths", "symbols")
_MAY_HAVE = ("blocking",)


def _read_variant(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of one [variants.NAME] table, checked by the annotations of :class:`Kernel`."""
    hints = get_type_hints(Kernel)
    _same_keys(table, [*_PARTS, "stack_bytes", "source"], where, _MAY_HAVE)
    fields: dict[str, Any] = {
        "stack_bytes": _value(table["stack_bytes"], int, f"{where}.stack_bytes"),
        "source": _value(table["source"], str, f"{where}.source"),
    }
    for key in (*_PARTS, *(key for key in _MAY_HAVE if key in table)):
        entry = _value(table[key], dict, f"{where}.{key}")
        part_hints = get_type_hints(hints[key])
        _same_keys(entry, list(part_hints), f"{where}.{key}")
        values = {n: _value(v, part_hints[n], f"{where}.{key}.{n}") for n, v in entry.items()}
        fields[key] = hints[key](**values)
    return fields


def _same_keys(
    table: dict[str, Any], expected: list[str], where: str, optional: tuple[str, ...] = ()
) -> None:
    allowed = [*expected, *optional]
    missing = [key for key in expected if key not in table]
    unknown = [key for key in table if key not in allowed]
    if missing:
        raise ManifestError(
            f"{where}: key {missing[0]!r} is missing; needed: {', '.join(expected)}"
        )
    if unknown:
        raise ManifestError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(allowed)}")


def _value(value: Any, kind: type, where: str) -> Any:
    if value is None:
        raise ManifestError(f"{where} is missing; give a {kind.__name__}")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ManifestError(f"{where} is {value!r}; it must be a {kind.__name__}")
    if isinstance(value, int) and value <= 0:
        raise ManifestError(f"{where} is {value}; it must be positive")
    return value


def _check(kernel: Kernel, where: str) -> None:
    """Relations between the numbers that every reader of a manifest relies on."""
    for operand, name in dataclasses.asdict(kernel.types).items():
        if name not in ELEMENT_TYPES:
            raise ManifestError(
                f"{where}.types.{operand} is {name!r}; known element "
                f"types: {', '.join(ELEMENT_TYPES)}"
            )
    for letter, block in zip("mkn", "rst", strict=True):
        size, unit = getattr(kernel.tile, letter), getattr(kernel.mmul, block)
        if size % unit:
            raise ManifestError(
                f"{where}: tile {letter} = {size} is not a multiple of mmul {block} = {unit}"
            )
    _check_grid(kernel, where)
    for key in ("first", "next"):
        symbol = getattr(kernel.symbols, key)
        if not re.fullmatch(r"[A-Za-z_]\w*", symbol):
            raise ManifestError(f"{where}.symbols.{key} is {symbol!r}; it must be a C identifier")
    if kernel.symbols.first == kernel.symbols.next:
        raise ManifestError(
            f"{where}.symbols: 'first' and 'next' are both {kernel.symbols.first!r}"
        )
    if kernel.stack_bytes % 32:
        raise ManifestError(
            f"{where}.stack_bytes is {kernel.stack_bytes}; it must be a "
            "multiple of 32, because buffers that "
            "the core loads vectors from are placed right after the stack"
        )


def _check_grid(kernel: Kernel, where: str) -> None:
    grid = kernel.grid
    given = f"{where}.grid has rows = {grid.rows}, columns = {grid.columns}"
    for target in (TARGETS[name] for name in kernel.targets):
        if grid.rows > target.core_rows or grid.columns > target.columns:
            raise ManifestError(
                f"{given}; {target.name} has {target.core_rows} rows of cores and "
                f"{target.columns} columns"
            )
    if grid.rows > grid.columns:
        raise ManifestError(
            f"{given}; there must be at least as many columns, because A of each core row "
            "enters through the shim of the column with the same number"
        )


def _runnable_names() -> list[str]:
    return [
        name
        for name in kernel_folders()
        if all(k.source.is_file() for k in load_variants(name).values())
    ]
