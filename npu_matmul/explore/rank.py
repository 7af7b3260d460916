"""Every candidate on every part of a target, ranked by what given products would take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npu_matmul.explore.candidates import (
    OUTPUTS,
    Candidates,
    core_bytes,
    core_grids,
    enumerate_candidates,
)
from npu_matmul.explore.fronts import front, thinned
from npu_matmul.explore.model import Products, model
from npu_matmul.kernel import CoreGrid, Kernel
from npu_matmul.performance.product import Npu

SHARE = 2 / 3  # a row of a front costs at most so much of the row before
SLOWEST = 1.5  # of the fastest: what is slower is not worth the memory it saves
SAME = 1e-9  # relative; what differs by less is as fast


@dataclass(frozen=True)
class Ranking:
    """``seconds`` (modelled) by core grid and candidate, ``core_bytes`` by candidate."""

    products: Products
    npu: Npu
    candidates: Candidates
    grids: list[CoreGrid]
    seconds: NDArray[np.float64]
    core_bytes: NDArray[np.int64]

    def kernel(self, grid: int, place: int) -> Kernel:
        return self.candidates.kernel(place, self.grids[grid], self.npu.target)

    def place_of(self, total_s: float) -> int:
        """The rank of something that takes so long: 1 where nothing is faster."""
        return 1 + int(np.count_nonzero(self.seconds < total_s * (1 - SAME)))

    def least(self, output: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Places of the candidates with a type of C, and of each the seconds on its best grid."""
        places = np.flatnonzero(self.candidates.output == output)
        return places, self.seconds[:, places].min(axis=0)

    def by_columns(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The columns of each grid, and the seconds of the best candidate whose C is the sums."""
        sums = self.seconds[:, self.candidates.output == 0]
        return np.array([grid.columns for grid in self.grids]), sums.min(axis=1)


def rank(dtype: str, products: Products, npu: Npu) -> Ranking:
    """Model every candidate on every part of the target.

    >>> products = Products("one", ((1500, 512, 512),), (1,), "one product")
    >>> ranking = rank("int8", products, Npu.named("npu1", 1.6e9))
    >>> memory_fronts(ranking)["int32"][0].tile
    TileShape(m=64, k=104, n=64)
    """
    candidates, grids = enumerate_candidates(dtype, npu.target), core_grids(npu.target)
    arrays = [candidates.on(grid) for grid in grids]
    seconds = np.stack([model(array, products, npu, dtype).total_s for array in arrays])
    return Ranking(products, npu, candidates, grids, seconds, core_bytes(arrays[0]))


def memory_fronts(ranking: Ranking) -> dict[str, list[Kernel]]:
    """For each type of C, that of the sums first: the fastest kernel, then those that nothing
    beats with as little memory of a core, each with :data:`SHARE` of the memory before, or less."""
    fronts = {}
    for output, name in enumerate(OUTPUTS[ranking.candidates.dtype]):
        places, seconds = ranking.least(output)
        cost = ranking.core_bytes[places]
        best = [p for p in front(seconds, cost) if seconds[p] <= SLOWEST * seconds.min()]
        grids = ranking.seconds[:, places].argmin(axis=0)
        chosen = thinned(best, cost, SHARE)
        fronts[name] = [ranking.kernel(int(grids[p]), int(places[p])) for p in chosen]
    return fronts


def column_front(ranking: Ranking) -> list[Kernel]:
    """Likewise with fewer columns of the target, where C is the sums."""
    columns, seconds = ranking.by_columns()
    places, _ = ranking.least(0)
    chosen = thinned(front(seconds, columns), columns, SHARE)
    best = ranking.seconds[:, places].argmin(axis=1)
    return [ranking.kernel(grid, int(places[best[grid]])) for grid in chosen]
