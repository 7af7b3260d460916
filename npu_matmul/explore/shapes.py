"""The products that ``--shapes`` means: those of whole encoders by name, or single ones."""

from __future__ import annotations

from collections.abc import Sequence

from npu_matmul.explore.model import Products, Shape
from npu_matmul.plan.encoder import projections
from npu_matmul.shapes import NAMED, parse_shapes
from npu_matmul.whisper.dimensions import SIZES

WINDOW = "a window of 30 s"


def products_of(names: Sequence[str]) -> Products:
    """Every product with weights of a named encoder, as often as a window needs it; M,K,N once.

    >>> products = products_of(["whisper-tiny", "16,32,48"])
    >>> products.shapes[2], products.counts[2], products.shapes[-1], products.counts[-1]
    ((1500, 384, 1152), 4, (16, 32, 48), 1)

    Raises ValueError for anything else, with what is allowed.
    """
    counts: dict[Shape, int] = {}
    for name in dict.fromkeys(names):
        for shape, count in _products(name):
            counts[shape] = counts.get(shape, 0) + count
    encoders = [name for name in names if name in NAMED]
    parts = [f"{WINDOW}{' of each' if len(encoders) > 1 else ''}"] if encoders else []
    parts += ["one product of each shape"] if len(encoders) < len(names) else []
    measure = " and ".join(parts) + ", B on the device"
    return Products(", ".join(names), tuple(counts), tuple(counts.values()), measure)


def _products(name: str) -> list[tuple[Shape, int]]:
    if name in NAMED:
        dims = SIZES[name.removeprefix("whisper-")]
        return [(shape, count) for _, shape, count in projections(dims)]
    return [(shape, 1) for shape in parse_shapes([name])]
