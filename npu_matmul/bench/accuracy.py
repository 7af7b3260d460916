"""What is right: of int8 every value, of floats an error that their rounding explains.

An accuracy stands on the row of its speed: ``wrong_values`` of so many ``values``, or a
``relative_error`` (the error's norm over that of the exact result) and what it is ``at_most``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Accuracy = dict[str, Any]

BF16_ROUNDING, F32_ROUNDING = 2.0**-8, 2.0**-24  # at most, of a value
QUANTISED_STANDARD_DEVIATIONS = 6.0  # that the largest of normal values is from 0, at most


def error_bound(kind: str, K: int) -> float:
    """How large the relative error of a product of standard normal values is at most.

    Errors of roundings are independent, so that they add as squares. bf16 rounds A, B and perhaps
    C; f32 rounds K products and as many sums, of which the last is the largest; dynamic int8 moves
    values of A and of B by up to half a step, evenly distributed: a step is at most 6/127.

    >>> [f"{error_bound(kind, 512):.1e}" for kind in ("bf16", "f32", "dynamic int8")]
    ['6.8e-03', '1.9e-06', '1.9e-02']
    """
    if kind == "dynamic int8":
        return math.sqrt(2 / 12) * QUANTISED_STANDARD_DEVIATIONS / 127
    if kind == "bf16":
        return math.sqrt(3) * BF16_ROUNDING
    return math.sqrt(2 * K) * F32_ROUNDING


def count_wrong(got: NDArray[Any], want: NDArray[np.int64]) -> Accuracy:
    return {"wrong_values": int(np.count_nonzero(got != want)), "values": want.size}


def relative_error(got: NDArray[Any], want: NDArray[np.float64], at_most: float) -> Accuracy:
    error = np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want)
    return {"relative_error": float(error), "at_most": at_most}


def is_right(accuracy: Accuracy) -> bool:
    """
    >>> is_right({"wrong_values": 0, "values": 4}), is_right({"wrong_values": 1, "values": 4})
    (True, False)
    >>> [is_right({"relative_error": e, "at_most": 1e-2}) for e in (2e-3, 1.0, float("nan"))]
    [True, False, False]
    """
    if "wrong_values" in accuracy:
        return bool(accuracy["wrong_values"] == 0)
    return bool(accuracy["relative_error"] <= accuracy["at_most"])


def worst(found: Iterable[Accuracy]) -> Accuracy:
    """That of the most wrong values, or of the largest error; NaN is larger than any."""

    def size(accuracy: Accuracy) -> float:
        key = "wrong_values" if "wrong_values" in accuracy else "relative_error"
        error = float(accuracy[key])
        return math.inf if math.isnan(error) else error

    return max(found, key=size)


def wrong_text(accuracy: Accuracy) -> str:
    """
    >>> wrong_text({"wrong_values": 1234, "values": 5678})
    '1,234 of 5,678 values are wrong'
    >>> wrong_text({"relative_error": 0.5, "at_most": 0.0068})
    'its error is 5.0e-01, which should be at most 6.8e-03'
    """
    if "wrong_values" in accuracy:
        return f"{accuracy['wrong_values']:,} of {accuracy['values']:,} values are wrong"
    error, at_most = accuracy["relative_error"], accuracy["at_most"]
    return f"its error is {error:.1e}, which should be at most {at_most:.1e}"
