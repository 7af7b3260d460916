"""The sizes of an encoder, read off its tensors; and which tensors an encoder must have.

Names are those of openai-whisper's ``AudioEncoder`` parameters: ``blocks.0.attn.query.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEAD_WIDTH = 64  # in every Whisper size; no tensor's shape shows it
KERNEL_WIDTH = 3  # frames that a convolution of the front end sees
MLP_FACTOR = 4
SEED = 2024  # of every encoder of random weights that the package makes
POSITIONS = 1500  # of a window of 30 s, the rows of its features
STRIDE = 2  # of the second convolution: two mel frames become one


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the tensor and what is
    wrong."""


@dataclass(frozen=True)
class Dimensions:
    """Sizes of an audio encoder, in openai-whisper's names.

    >>> SIZES["base"]
    Dimensions(n_mels=80, n_audio_ctx=1500, n_audio_state=512, n_audio_head=8, n_audio_layer=6)
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int

    @property
    def frames(self) -> int:
        """Mel frames of one window: 3000, which are 30 s."""
        return STRIDE * self.n_audio_ctx

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of such an encoder, with its shape."""
        state, wide = self.n_audio_state, MLP_FACTOR * self.n_audio_state
        shapes: dict[str, tuple[int, ...]] = {
            "conv1.weight": (state, self.n_mels, KERNEL_WIDTH),
            "conv1.bias": (state,),
            "conv2.weight": (state, state, KERNEL_WIDTH),
            "conv2.bias": (state,),
            "positional_embedding": (self.n_audio_ctx, state),
        }
        for layer in range(self.n_audio_layer):
            for name, shape in {
                "attn.query.weight": (state, state),
                "attn.query.bias": (state,),
                "attn.key.weight": (state, state),  # the only projection without a bias
                "attn.value.weight": (state, state),
                "attn.value.bias": (state,),
                "attn.out.weight": (state, state),
                "attn.out.bias": (state,),
                "attn_ln.weight": (state,),
                "attn_ln.bias": (state,),
                "mlp.0.weight": (wide, state),
                "mlp.0.bias": (wide,),
                "mlp.2.weight": (state, wide),
                "mlp.2.bias": (state,),
                "mlp_ln.weight": (state,),
                "mlp_ln.bias": (state,),
            }.items():
                shapes[f"blocks.{layer}.{name}"] = shape
        return {**shapes, "ln_post.weight": (state,), "ln_post.bias": (state,)}


def _size(state: int, layers: int, n_mels: int = 80) -> Dimensions:
    return Dimensions(n_mels, POSITIONS, state, state // HEAD_WIDTH, layers)


# A. Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, table 1;
# large-v3 and turbo take 128 mels.
SIZES = {
    "tiny": _size(384, 4),
    "base": _size(512, 6),
    "small": _size(768, 12),
    "medium": _size(1024, 24),
    "large": _size(1280, 32),
    "large-v2": _size(1280, 32),
    "large-v3": _size(1280, 32, n_mels=128),
    "turbo": _size(1280, 32, n_mels=128),
}


def read_dimensions(shapes: Mapping[str, tuple[int, ...]], source: str) -> Dimensions:
    """The sizes that tensors of these shapes have; ``source`` names them in errors.

    Raises:
        CheckpointError: a tensor is missing, too many, or of another shape; the message names it.

    >>> read_dimensions(SIZES["tiny"].shapes(), "an example") == SIZES["tiny"]
    True
    """
    state, n_mels = _dimensions_of(shapes, "conv1.weight", 3, source)[:2]
    n_ctx = _dimensions_of(shapes, "positional_embedding", 2, source)[0]
    numbers = (re.match(r"blocks\.(\d+)\.", name) for name in shapes)
    layers = {int(found[1]) for found in numbers if found}
    if not layers:
        raise CheckpointError(f"{source}: tensor 'blocks.0.attn.query.weight' is missing")
    if state % HEAD_WIDTH:
        raise CheckpointError(
            f"{source}: tensor 'conv1.weight' has {state} outputs; Whisper's heads are "
            f"{HEAD_WIDTH} wide, so that this is a multiple of {HEAD_WIDTH}"
        )
    found = Dimensions(n_mels, n_ctx, state, state // HEAD_WIDTH, max(layers) + 1)
    needed = found.shapes()
    for name, shape in needed.items():
        if name not in shapes:
            raise CheckpointError(f"{source}: tensor {name!r} is missing; its shape is {shape}")
        if tuple(shapes[name]) != shape:
            raise CheckpointError(
                f"{source}: tensor {name!r} has shape {tuple(shapes[name])}; with "
                f"{state} states and {n_mels} mels, as 'conv1.weight' has, it is {shape}"
            )
    unknown = sorted(set(shapes) - set(needed))
    if unknown:
        raise CheckpointError(
            f"{source}: {len(unknown)} tensors are not of a Whisper encoder, the first is "
            f"{unknown[0]!r}"
        )
    return found


def _dimensions_of(
    shapes: Mapping[str, tuple[int, ...]], name: str, count: int, source: str
) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(
            f"{source}: tensor {name!r} is missing: this is no Whisper audio encoder"
        )
    if len(shapes[name]) != count:
        raise CheckpointError(
            f"{source}: tensor {name!r} has shape {tuple(shapes[name])}; {count} dimensions are "
            "needed"
        )
    return tuple(shapes[name])


def sinusoids(length: int, channels: int, max_timescale: float = 10_000.0) -> NDArray[np.float32]:
    """Positions (length, channels): sines, then cosines, of wavelengths 2 pi to 2 pi max_timescale.

    A. Vaswani et al., 2017, section 3.5, with all sines first, as openai-whisper lays them out.

    >>> sinusoids(2, 4).round(4).tolist()[0]
    [0.0, 0.0, 1.0, 1.0]
    """
    if channels % 2 or channels < 4:
        raise ValueError(f"sinusoids: channels is {channels}; an even number from 4 on is needed")
    wavelengths = max_timescale ** (np.arange(channels // 2) / (channels // 2 - 1))
    angles = np.arange(length)[:, np.newaxis] / wavelengths
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def random_tensors(dimensions: Dimensions, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Seeded weights of an encoder of these sizes, float32: for trying speed. Its features mean
    nothing.

    Products keep the deviation of what they are given; positions are the sinusoids.

    >>> random_tensors(SIZES["tiny"])["blocks.3.mlp.2.weight"].shape
    (384, 1536)
    """
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in dimensions.shapes().items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        drawn = random.standard_normal(shape, np.float32)
        if name.endswith("bias"):
            drawn *= np.float32(0.1)
        elif len(shape) == 1:  # of a LayerNorm
            drawn = np.float32(1) + np.float32(0.1) * drawn
        else:
            drawn *= np.float32(fan_in**-0.5)
        tensors[name] = drawn
    tensors["positional_embedding"] = sinusoids(dimensions.n_audio_ctx, dimensions.n_audio_state)
    return tensors
