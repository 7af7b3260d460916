"""An encoder works in memory that it has, which belongs to one thread, and to no caller."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from comparing import assert_equal_bits, peak_bytes
from numpy.typing import NDArray

from npu_matmul.precision import PRECISIONS
from npu_matmul.whisper.dimensions import Dimensions, random_tensors
from npu_matmul.whisper.model import AudioEncoder

SIZES = Dimensions(8, n_audio_ctx=900, n_audio_state=128, n_audio_head=2, n_audio_layer=2)
ROWS_BYTES = 4 * SIZES.n_audio_ctx * SIZES.n_audio_state  # a hidden layer has 4 times that


def features(*seeds: int) -> NDArray[np.float32]:
    made = [np.random.default_rng(s).standard_normal((8, SIZES.frames), np.float32) for s in seeds]
    return made[0] if len(made) == 1 else np.stack(made)


@pytest.mark.parametrize("attention", ["host", "device"])
@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_a_second_window_allocates_little_more_than_its_result(
    precision: str, attention: str
) -> None:
    how = {"*": precision, "*.qk": "bf16", "*.wv": "bf16"}
    encoder = AudioEncoder(random_tensors(SIZES), device="cpu", precision=how, attention=attention)
    mel = features(1)
    assert peak_bytes(lambda: encoder(mel)) < 3 * ROWS_BYTES  # what comes in and what comes out


def test_windows_of_several_threads_do_not_meet() -> None:
    encoder = AudioEncoder(random_tensors(SIZES), device="cpu")
    want = [encoder(features(seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = pool.map(lambda seed: encoder(features(seed)), range(4))
            for one, expected in zip(got, want, strict=True):
                assert_equal_bits(one, expected)


def test_a_result_stays_what_it_is() -> None:
    """Also while another encoder runs between the layers of the first."""
    encoder = AudioEncoder(random_tensors(SIZES), device="cpu")
    other = AudioEncoder(random_tensors(SIZES, seed=1), device="cpu", precision="int8")
    want, wanted = encoder(features(1)), other(features(2, 3))
    kept = want.copy(), wanted.copy()
    got = encoder(features(1), on_layer=lambda done: other(features(2, 3)))
    assert_equal_bits(got, kept[0])
    assert_equal_bits(want, kept[0])
    assert_equal_bits(wanted, kept[1])
