"""Features: those of the device and of the host equal openai-whisper's and a naive transform.

``data/log_mel_speech.npz`` holds ``whisper.audio.log_mel_spectrogram(speech_sample(), n_mels)`` of
openai-whisper (version under ``openai_whisper_version``) for 80 and 128 mels; of its ``frames``
columns every ``frame_stride``-th is kept.
"""

from __future__ import annotations

import cmath
import doctest
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from npu_matmul.device import NpuDevice
from npu_matmul.whisper import mel
from npu_matmul.whisper.audio import LOUDEST, AudioError, pad_or_trim, speech_sample
from npu_matmul.whisper.ledger import record
from npu_matmul.whisper.mel import (
    LogMel,
    host_log_mel_spectrogram,
    log_mel_spectrogram,
    mel_filters,
)

REFERENCE = Path(__file__).parent / "data" / "log_mel_speech.npz"
# openai-whisper computes in float32; its rounding is about 3e-5 on this recording.
REFERENCE_TOLERANCE = 1e-4
# Both sides are float64 up to one rounding to float32 of values near 1.
NAIVE_TOLERANCE = 1e-6


def reference(n_mels: int) -> tuple[NDArray[np.float32], int, int]:
    """openai-whisper's features of the recording, the stride of its columns, and how many there
    were."""
    with np.load(REFERENCE) as stored:
        return stored[f"mel_{n_mels}"], int(stored["frame_stride"]), int(stored["frames"])


def noise(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(-0.5, 0.5, count)


def naive_power(samples: NDArray[Any], frame: int) -> list[float]:
    """|DFT|**2 of one frame straight from the sum; reflection by index, window value by value."""
    windowed = []
    for n in range(400):
        index = abs(160 * frame - 200 + n)
        if index >= len(samples):
            index = 2 * (len(samples) - 1) - index
        windowed.append(math.sin(math.pi * n / 400) ** 2 * float(samples[index]))
    turns = [cmath.exp(-2j * math.pi * n / 400) for n in range(400)]
    return [
        abs(sum(x * turns[k * n % 400] for n, x in enumerate(windowed))) ** 2 for k in range(201)
    ]


def mel_corners_hz(n_mels: int) -> NDArray[np.float64]:
    """Slaney's corners, 0 Hz to 8 kHz: 15 mel per kHz at first, then a factor of 6.4 in 27 mel."""
    top_mel = 15 + 27 * math.log(8) / math.log(6.4)
    mels = [top_mel * i / (n_mels + 1) for i in range(n_mels + 2)]
    return np.array([m / 15 * 1000 if m <= 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in mels])


# The features


@pytest.mark.parametrize("n_mels", [80, 128])
def test_features_of_the_recording_equal_openai_whisper(n_mels: int) -> None:
    expected, stride, frames = reference(n_mels)
    features = host_log_mel_spectrogram(speech_sample(), n_mels)
    assert features.dtype == np.float32
    assert features.shape == (n_mels, frames)
    assert expected.shape == (n_mels, -(-frames // stride))
    np.testing.assert_allclose(features[:, ::stride], expected, rtol=0, atol=REFERENCE_TOLERANCE)


def test_features_equal_the_definition_written_out() -> None:
    samples = speech_sample()[8000:9000]  # six frames: both reflected ends and whole frames
    power = np.array([naive_power(samples, frame) for frame in range(1000 // 160)]).T
    log_mel = np.log10(np.maximum(mel_filters(80).astype(np.float64) @ power, 1e-10))
    expected = (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4
    actual = host_log_mel_spectrogram(samples)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=NAIVE_TOLERANCE)


@pytest.mark.parametrize("count", [201, 319, 320, 321, 400, 1599, 1600, 16_000])
def test_one_frame_per_whole_hop(count: int) -> None:
    assert host_log_mel_spectrogram(noise(count)).shape == (80, count // 160)


def test_silence_is_the_power_floor() -> None:
    features = host_log_mel_spectrogram(np.zeros(1600))
    np.testing.assert_array_equal(features, np.float32((math.log10(1e-10) + 4) / 4))


def test_dynamic_range_is_eight_decades_below_the_loudest() -> None:
    tone = np.sin(2 * np.pi * 1000 / 16_000 * np.arange(16_000))
    tone[8000:] = 0
    features = host_log_mel_spectrogram(tone)
    assert features.max() - features.min() == pytest.approx(8 / 4, abs=1e-6)


def test_a_tone_is_loudest_in_the_mel_that_holds_it() -> None:
    tone = np.sin(2 * np.pi * 3000 / 16_000 * np.arange(16_000))
    corners_hz = mel_corners_hz(80)
    row = int(host_log_mel_spectrogram(tone)[:, 50].argmax())
    assert corners_hz[row] < 3000 < corners_hz[row + 2]


def test_the_samples_are_not_changed_and_every_float_type_is_taken() -> None:
    samples = noise(1000).astype(np.float32)
    before = samples.copy()
    features = host_log_mel_spectrogram(samples)
    np.testing.assert_array_equal(samples, before)
    np.testing.assert_array_equal(host_log_mel_spectrogram(samples.astype(np.float64)), features)
    np.testing.assert_array_equal(host_log_mel_spectrogram(samples.tolist()), features)
    np.testing.assert_array_equal(host_log_mel_spectrogram(np.repeat(samples, 2)[::2]), features)


# The mel bank


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_bank_is_non_negative_and_each_filter_lies_between_its_corners(n_mels: int) -> None:
    filters = mel_filters(n_mels)
    assert filters.shape == (n_mels, 201)
    assert filters.dtype == np.float32
    assert (filters >= 0).all()
    assert filters.any(axis=1).all()
    bins_hz, corners_hz = np.arange(201) * 40.0, mel_corners_hz(n_mels)
    inside = (bins_hz > corners_hz[:-2, None]) & (bins_hz < corners_hz[2:, None])
    # A bin that is a corner, like 8 kHz, may carry a rounding error instead of zero.
    np.testing.assert_allclose(filters[~inside], 0, rtol=0, atol=1e-12)
    assert (filters[inside] > 0).mean() > 0.99


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_filters_are_triangles_of_area_one(n_mels: int) -> None:
    filters, corners_hz = mel_filters(n_mels).astype(np.float64), mel_corners_hz(n_mels)
    low, peak, high = corners_hz[:-2], corners_hz[1:-1], corners_hz[2:]
    bins_hz = np.arange(201) * 40.0
    for row in range(n_mels):
        height = 2 / (high[row] - low[row])  # per Hz: height * width / 2 == 1
        corners = [low[row], peak[row], high[row]]
        expected = np.interp(bins_hz, corners, [0, height, 0], left=0, right=0)
        np.testing.assert_allclose(filters[row], expected, rtol=0, atol=1e-8)
    # Where filters are wide, the sum over bins is the integral up to the 40 Hz grid.
    wide = high - low > 8 * 40
    assert wide.any()
    np.testing.assert_allclose(filters[wide].sum(axis=1) * 40, 1, rtol=0, atol=0.02)


def test_mel_scale_is_linear_below_1_khz_and_logarithmic_above() -> None:
    peaks_hz = mel_filters(80).argmax(axis=1) * 40.0
    centres_hz = mel_corners_hz(80)[1:-1]
    assert np.abs(peaks_hz - centres_hz).max() <= 20 + 1e-6
    assert np.count_nonzero(centres_hz < 1000) == 26  # 1 kHz is 15 / 45.2 of the scale


@pytest.mark.parametrize("n_mels", [0, -1, 150, 1000])
def test_mel_bank_refuses_counts_it_cannot_fill(n_mels: int) -> None:
    with pytest.raises(AudioError, match=rf"n_mels is {n_mels}\b.*use 80 .*128"):
        mel_filters(n_mels)
    with pytest.raises(AudioError, match=r"use 80 .*128"):
        host_log_mel_spectrogram(noise(1600), n_mels)


# On a device

# What LogMel's docstring says: mean, 99.9th percentile and maximum of the absolute difference.
DOCUMENTED = {
    "bf16x3": (7e-6, 4e-4, 7e-4),
    "bf16": (7e-3, 0.22, 0.34),
    "int8": (0.24, 1.3, 1.4),
}
PROMISED = 1e-3, 1e-2  # of bf16x3: mean and 99.9th percentile


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("precision", list(DOCUMENTED))
def test_errors_are_those_that_are_documented(n_mels: int, precision: str) -> None:
    expected, stride, _ = reference(n_mels)
    features = log_mel_spectrogram(speech_sample(), n_mels, device="cpu", precision=precision)
    error = np.abs(features[:, ::stride] - expected)
    found = error.mean(), np.percentile(error, 99.9), error.max()
    rounded_up = zip(found, DOCUMENTED[precision], strict=True)
    assert all(bound / 3 < value <= bound * 1.1 for value, bound in rounded_up), found
    if precision == "bf16x3":
        assert found[0] <= PROMISED[0] and found[1] <= PROMISED[1]
    row = next(line for line in str(LogMel.__doc__).splitlines() if f" {precision} " in line)
    assert tuple(map(float, row.split()[1:])) == DOCUMENTED[precision]


def test_a_whole_file_is_two_launches(npu: NpuDevice) -> None:
    samples = pad_or_trim(speech_sample(), 16_000)
    with record() as ledger:
        features = log_mel_spectrogram(samples, device=npu)
    assert ledger.counts["launches"] == 2
    assert ledger.products == {npu.name: 2}
    # The device's bf16 sums are rounded otherwise than the host's; both are near float64.
    np.testing.assert_allclose(features, host_log_mel_spectrogram(samples), rtol=0, atol=2e-3)


def test_features_of_a_window_are_independent_of_the_file_it_is_in() -> None:
    log_mel = LogMel(80, device="cpu")
    samples = speech_sample()
    quiet, loud = samples[:16_000] * 0.01, samples[16_000:32_000]
    alone = log_mel(quiet)
    assert np.abs(log_mel(np.concatenate([quiet, loud]))[:, :90] - alone[:, :90]).max() > 0.1
    np.testing.assert_array_equal(log_mel(quiet), alone)


@pytest.mark.parametrize("precision", list(DOCUMENTED))
def test_the_loudest_samples_have_features(precision: str) -> None:
    """Those of the same sound at a usual level, shifted: a power of two changes no rounding but
    that of the logarithms."""
    log_mel = LogMel(80, device="cpu", precision=precision)
    samples = speech_sample() / np.abs(speech_sample()).max()
    shift = 2 * np.log10(LOUDEST) / 4
    got = log_mel(samples * np.float32(LOUDEST))
    np.testing.assert_allclose(got, log_mel(samples) + shift, rtol=1e-6, atol=1e-6)


def test_unusable_samples_are_refused_on_a_device_too() -> None:
    with pytest.raises(AudioError, match="beyond 2147483648, the first, 1e\\+20, at index 7"):
        log_mel_spectrogram(np.where(np.arange(1600) == 7, 1e20, 0.0), device="cpu")
    with pytest.raises(AudioError, match="at least 201"):
        log_mel_spectrogram(np.zeros(200), device="cpu")
    with pytest.raises(ValueError, match="there is no precision 'f32'; known are: bf16, bf16x3"):
        log_mel_spectrogram(np.zeros(1600), device="cpu", precision="f32")


def test_docstring_examples_run() -> None:
    result = doctest.testmod(mel)
    assert result.attempted > 0
    assert result.failed == 0
