"""The shapes of products to measure or to plan: Whisper's projections by name, or any M,K,N."""

from __future__ import annotations

from collections.abc import Iterable

from npu_matmul.whisper.dimensions import MLP_FACTOR, SIZES, Dimensions

Shape = tuple[int, int, int]

LARGEST = 16_384  # a float32 matrix of this many rows and columns takes 1 GiB


def _projections(dims: Dimensions) -> tuple[Shape, ...]:
    """Attention's query, key, value and output; the first and the second layer of the MLP."""
    tokens, state, wide = dims.n_audio_ctx, dims.n_audio_state, MLP_FACTOR * dims.n_audio_state
    return (tokens, state, state), (tokens, state, wide), (tokens, wide, state)


NAMED = {f"whisper-{name}": _projections(dims) for name, dims in SIZES.items()}
DEFAULT_SHAPES = ("whisper-base",)
SMALL_CUBES = (16, 32, 48, 64, 96, 128, 192, 256)


def parse_shapes(texts: Iterable[str]) -> list[Shape]:
    """The shapes that the texts name, each once, in their order.

    >>> parse_shapes(["whisper-base", "16,32,48"])[2:]
    [(1500, 2048, 512), (16, 32, 48)]

    Raises ValueError for anything else, with what is allowed.
    """
    found: dict[Shape, None] = {}
    for text in texts:
        found.update(dict.fromkeys(NAMED[text] if text in NAMED else (_one(text),)))
    return list(found)


def _one(text: str) -> Shape:
    try:
        M, K, N = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--shapes {text!r}: {_allowed()}") from None
    if not all(1 <= size <= LARGEST for size in (M, K, N)):
        raise ValueError(f"--shapes {text!r}: {_allowed()}")
    return M, K, N


def _allowed() -> str:
    return (
        f"allowed are {', '.join(NAMED)}, or M,K,N for a product (M, K) @ (K, N): "
        f"three whole numbers from 1 to {LARGEST:,}, such as 1500,512,512"
    )


def shape_text(shape: Iterable[int]) -> str:
    """As printed in tables and pictures.

    >>> shape_text((1500, 512, 2048))
    '1500x512x2048'
    """
    return "x".join(map(str, shape))
