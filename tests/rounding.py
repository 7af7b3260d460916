"""The rounding modes of the AIE2 by their codes in crRnd, and what each of them does."""

from __future__ import annotations

FLOOR, CEIL, TO_ZERO, FROM_ZERO = 0, 1, 2, 3
HALF_DOWN, HALF_UP, HALF_TO_ZERO, HALF_FROM_ZERO, HALF_EVEN, HALF_ODD = 8, 9, 10, 11, 12, 13
ROUNDING_MODES = (FLOOR, CEIL, TO_ZERO, FROM_ZERO, 8, 9, 10, 11, 12, 13)


def rounded(value: int, shift: int, mode: int) -> int:
    """value / 2**shift as an integer, by what each mode's name says."""
    below, rest = divmod(value, 1 << shift)
    if rest == 0:
        return below
    above = below + 1
    nearer_zero, farther = (below, above) if value > 0 else (above, below)
    even, odd = (below, above) if below % 2 == 0 else (above, below)
    directed = {FLOOR: below, CEIL: above, TO_ZERO: nearer_zero, FROM_ZERO: farther}
    if mode in directed:
        return directed[mode]
    if 2 * rest != 1 << shift:
        return below if 2 * rest < 1 << shift else above
    halfway = {HALF_DOWN: below, HALF_UP: above, HALF_TO_ZERO: nearer_zero}
    halfway |= {HALF_FROM_ZERO: farther, HALF_EVEN: even, HALF_ODD: odd}
    return halfway[mode]
