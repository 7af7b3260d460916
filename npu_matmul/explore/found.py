"""What is shown of an exploration; each row has passed the design rules on its generated design."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from npu_matmul.explore.candidates import kernels_array, sums_bytes, template
from npu_matmul.explore.model import Modelled, Products, model
from npu_matmul.explore.rank import Ranking, column_front, memory_fronts, rank
from npu_matmul.kernel import Kernel, kernels_named
from npu_matmul.kernel_rules import check_kernel
from npu_matmul.memory_map import memory_map
from npu_matmul.performance.product import Npu

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A kernel, what the products would take on it, and its rank among all candidates;
    ``core_bytes`` is where the toolchain's allocator ends. ``found`` ones have a manifest."""

    kernel: Kernel
    modelled: Modelled
    multiplications: int
    rank: int
    core_bytes: int
    found: bool = False

    @property
    def total_s(self) -> float:
        return float(self.modelled.total_s)

    @property
    def limit(self) -> str:
        """What binds: the part of the time that is the longest, see ``LaunchTime.limit``."""
        return self.modelled.launches.limit

    @property
    def padding(self) -> float:
        """The fraction of multiplications that are wasted on padding."""
        return 1 - self.multiplications / float(self.modelled.multiplications)

    @property
    def sums_bytes(self) -> int:
        """Of the core's memory, what sums take that are kept apart from C."""
        return sums_bytes(self.kernel.types, self.kernel.tile)


@dataclass(frozen=True)
class Found:
    """The ranking, and the rows of each section: a front, the fastest first, or ``found`` kernels.
    ``broken`` ones were found as well, but break a rule on this target."""

    ranking: Ranking
    sections: dict[str, list[Row]]
    broken: list[Kernel]

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.sections.values() for row in rows]

    @property
    def best(self) -> Row:
        """The fastest whose C is the sums: what this project can run as it is."""
        return next(iter(self.sections.values()))[0]

    @property
    def reference(self) -> Row | None:
        """The fastest kernel that was found, if any was."""
        return min(filter(lambda row: row.found, self.rows), key=lambda r: r.total_s, default=None)


def explore(
    dtype: str, products: Products, npu: Npu, on_progress: OnProgress = lambda _: None
) -> Found:
    """Rank all candidates; check those on the fronts, and the kernels that were found."""
    on_progress("modelling all candidates")
    ranking = rank(dtype, products, npu)
    fronts = {f"C {name}": kernels for name, kernels in memory_fronts(ranking).items()}
    shown = next(iter(fronts.values()))
    fronts["fewer columns"] = [k for k in column_front(ranking) if k not in shown]
    sections: dict[str, list[Row]] = {}
    for title, kernels in fronts.items():
        rows = [_checked(kernel, ranking, on_progress) for kernel in kernels]
        assert None not in rows, f"a candidate breaks a design rule: {kernels[rows.index(None)]}"
        sections[title] = [row for row in rows if row is not None]
    found, broken = [], []
    for kernel in found_kernels(dtype):
        row = _checked(kernel, ranking, on_progress, found=True)
        broken += [kernel] if row is None else []
        found += [] if row is None else [row]
    sections["found"] = sorted(found, key=lambda row: row.total_s)
    return Found(ranking, sections, broken)


def found_kernels(dtype: str) -> list[Kernel]:
    """Those with a manifest that take the same operands."""
    operands = template(dtype).types.a, template(dtype).types.b
    return [kernel for kernel in kernels_named() if (kernel.types.a, kernel.types.b) == operands]


def _checked(
    kernel: Kernel, ranking: Ranking, on_progress: OnProgress, found: bool = False
) -> Row | None:
    """A row of the tables, or None where the kernel breaks a design rule."""
    tile, target = kernel.tile, ranking.npu.target
    on_progress(f"checking {tile.m}x{tile.k}x{tile.n} by the design rules")
    checked = check_kernel(kernel, target.name)
    if checked.violations:
        return None
    maps = memory_map(checked.overlay)
    used = max(r.end for t, ranges in maps.items() if t.kind == "core" for r in ranges)
    products = ranking.products
    modelled = model(kernels_array(kernel), products, ranking.npu, ranking.candidates.dtype)
    place = ranking.place_of(float(modelled.total_s))
    return Row(kernel, modelled, products.multiplications, place, used, found)
