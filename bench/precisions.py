"""Precisions by device: error against float64 beside host seconds, in one run."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from timing import medians

from npu_matmul import last_call, npu_matmul
from npu_matmul.precision import PRECISIONS

SHAPE = 1500, 512, 512
DEVICES = ("cpu", "emulated")


def run() -> list[dict[str, Any]]:
    """A row per device and precision, and one of np.matmul in float32; random normal operands."""
    M, K, N = SHAPE
    random = np.random.default_rng(0)
    a = random.standard_normal((M, K)).astype(np.float32)
    b = random.standard_normal((K, N)).astype(np.float32)
    want = a.astype(np.float64) @ b.astype(np.float64)

    def error(got: np.ndarray) -> float:
        return float(np.linalg.norm(got - want) / np.linalg.norm(want))

    rows = []
    for device in DEVICES:
        forms = {
            name: partial(npu_matmul, a, b, precision=name, device=device) for name in PRECISIONS
        }
        errors = {}
        arithmetic = {}
        for name, form in forms.items():
            errors[name] = error(form())
            arithmetic[name] = last_call().arithmetic
        if device == "cpu":
            forms["np.matmul float32"] = lambda: np.matmul(a, b)
            errors["np.matmul float32"], arithmetic["np.matmul float32"] = (
                error(a @ b),
                "f32, by BLAS",
            )
        for name, seconds in medians(forms).items():
            rows.append(
                {
                    "device": device,
                    "precision": name,
                    "shape": list(SHAPE),
                    "relative_error": errors[name],
                    "arithmetic": arithmetic[name],
                    "host_seconds": seconds,
                }
            )
    return rows
