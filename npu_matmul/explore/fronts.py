"""What nothing beats: Pareto fronts of modelled time and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def front(seconds: NDArray[Any], cost: NDArray[Any]) -> list[int]:
    """Places of those that nothing beats in both, the fastest first: each costs less than every
    faster one.

    >>> front(np.array([3.0, 1.0, 2.0, 2.0]), np.array([10, 30, 30, 20]))
    [1, 3, 0]
    """
    order = np.lexsort((cost, seconds))
    cheapest = np.minimum.accumulate(cost[order])
    better = np.append(True, cheapest[1:] < cheapest[:-1])
    return [int(place) for place in order[better]]


def thinned(places: Sequence[int], cost: NDArray[Any], share: float) -> list[int]:
    """The first, then each that costs at most ``share`` of the one kept before.

    >>> thinned([0, 1, 2, 3], np.array([64, 60, 40, 16]), share=2 / 3)
    [0, 2, 3]
    """
    kept = [places[0]]
    for place in places[1:]:
        if cost[place] <= share * cost[kept[-1]]:
            kept.append(place)
    return kept
