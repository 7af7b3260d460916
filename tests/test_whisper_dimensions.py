"""Sizes read off tensors, and what is said of tensors that are not those of an encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_encoder import MEL, TENSORS

from npu_matmul.whisper.dimensions import (
    SIZES,
    CheckpointError,
    Dimensions,
    random_tensors,
    read_dimensions,
    sinusoids,
)
from npu_matmul.whisper.model import AudioEncoder


@pytest.mark.parametrize("size", list(SIZES))
def test_every_size_is_read_off_the_shapes(size: str) -> None:
    dims = SIZES[size]
    assert read_dimensions(dims.shapes(), size) == dims
    assert dims.n_audio_state == 64 * dims.n_audio_head and dims.frames == 3000


def test_parameters_of_each_size_are_as_many_as_published() -> None:
    """What openai-whisper's ``AudioEncoder(...)`` of these sizes counts; positions are a buffer
    there."""
    count = {
        size: sum(int(np.prod(s)) for n, s in dims.shapes().items() if n != "positional_embedding")
        for size, dims in SIZES.items()
    }
    assert count["tiny"] == 7_632_384
    assert count["base"] == 19_822_592
    assert count["large-v2"] == 634_864_640


def test_sinusoids_are_sines_then_cosines() -> None:
    positions = sinusoids(1500, 384)
    assert positions.shape == (1500, 384) and positions.dtype == np.float32
    for t, i in ((0, 0), (1, 0), (7, 100), (1499, 191)):
        angle = t / 10_000 ** (i / 191)
        assert positions[t, i] == pytest.approx(np.sin(angle), abs=1e-6)
        assert positions[t, 192 + i] == pytest.approx(np.cos(angle), abs=1e-6)


@pytest.mark.parametrize("channels", [2, 5])
def test_sinusoids_need_an_even_number_of_channels(channels: int) -> None:
    with pytest.raises(ValueError, match=f"channels is {channels}; an even number from 4 on"):
        sinusoids(10, channels)


def without(name: str) -> dict[str, NDArray[Any]]:
    return {other: tensor for other, tensor in TENSORS.items() if other != name}


@pytest.mark.parametrize("name", list(TENSORS))
def test_a_missing_tensor_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"here: tensor '{name}' is missing"):
        AudioEncoder(without(name), source="here")


@pytest.mark.parametrize("name", ["conv2.weight", "blocks.1.attn.key.weight", "ln_post.bias"])
def test_a_tensor_of_a_wrong_shape_is_named_with_the_right_one(name: str) -> None:
    right = TENSORS[name].shape
    wrong = {**TENSORS, name: np.zeros((*right[:-1], right[-1] + 1), np.float32)}
    with pytest.raises(CheckpointError) as caught:
        AudioEncoder(wrong)
    assert f"tensor '{name}' has shape {wrong[name].shape}" in str(caught.value)
    assert str(right) in str(caught.value)


def test_tensors_of_something_else_are_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"1 tensors are not of a Whisper encoder, .*'lm_head'"
    ):
        AudioEncoder({**TENSORS, "lm_head": MEL})
    with pytest.raises(CheckpointError, match=r"'conv1\.weight' is missing: this is no Whisper"):
        AudioEncoder({})
    flat = {**TENSORS, "conv1.weight": TENSORS["conv1.weight"][..., 0]}
    with pytest.raises(CheckpointError, match=r"'conv1\.weight' has shape .*; 3 dimensions"):
        AudioEncoder(flat)
    narrow = random_tensors(Dimensions(12, 30, 96, 1, 1))
    with pytest.raises(CheckpointError, match=r"'conv1\.weight' has 96 outputs; .*multiple of 64"):
        AudioEncoder(narrow)
