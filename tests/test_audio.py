"""Audio input: features equal openai-whisper's and a naive transform; refusals name their cure.

``data/log_mel_speech.npz`` holds ``whisper.audio.log_mel_spectrogram(speech_sample(), n_mels)`` of
openai-whisper (version under ``openai_whisper_version``) for 80 and 128 mels; of its ``frames``
columns every ``frame_stride``-th is kept.
"""

from __future__ import annotations

import cmath
import doctest
import math
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from npu_matmul.whisper import audio
from npu_matmul.whisper.audio import (
    AudioError,
    log_mel_spectrogram,
    mel_filters,
    read_wav,
    speech_sample,
)

REFERENCE = Path(__file__).parent / "data" / "log_mel_speech.npz"
SPEECH = Path(audio.__file__).parents[1] / "data" / "speech.wav"
# openai-whisper computes in float32; its rounding is about 3e-5 on this recording.
REFERENCE_TOLERANCE = 1e-4
# Both sides are float64 up to one rounding to float32 of values near 1.
NAIVE_TOLERANCE = 1e-6


def write_wav(
    path: Path, data: bytes, rate_hz: int = 16_000, channels: int = 1, sample_bytes: int = 2
) -> Path:
    with wave.open(str(path), "wb") as wav:
        wav.setframerate(rate_hz)
        wav.setnchannels(channels)
        wav.setsampwidth(sample_bytes)
        wav.writeframes(data)
    return path


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
    with np.load(REFERENCE) as reference:
        stride, frames = int(reference["frame_stride"]), int(reference["frames"])
        expected = reference[f"mel_{n_mels}"]
    features = log_mel_spectrogram(speech_sample(), n_mels)
    assert features.dtype == np.float32
    assert features.shape == (n_mels, frames)
    assert expected.shape == (n_mels, -(-frames // stride))
    np.testing.assert_allclose(features[:, ::stride], expected, rtol=0, atol=REFERENCE_TOLERANCE)


def test_features_equal_the_definition_written_out() -> None:
    samples = speech_sample()[8000:9000]  # six frames: both reflected ends and whole frames
    power = np.array([naive_power(samples, frame) for frame in range(1000 // 160)]).T
    log_mel = np.log10(np.maximum(mel_filters(80).astype(np.float64) @ power, 1e-10))
    expected = (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4
    actual = log_mel_spectrogram(samples)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=NAIVE_TOLERANCE)


@pytest.mark.parametrize("count", [201, 319, 320, 321, 400, 1599, 1600, 16_000])
def test_one_frame_per_whole_hop(count: int) -> None:
    assert log_mel_spectrogram(noise(count)).shape == (80, count // 160)


def test_silence_is_the_power_floor() -> None:
    features = log_mel_spectrogram(np.zeros(1600))
    np.testing.assert_array_equal(features, np.float32((math.log10(1e-10) + 4) / 4))


def test_dynamic_range_is_eight_decades_below_the_loudest() -> None:
    tone = np.sin(2 * np.pi * 1000 / 16_000 * np.arange(16_000))
    tone[8000:] = 0
    features = log_mel_spectrogram(tone)
    assert features.max() - features.min() == pytest.approx(8 / 4, abs=1e-6)


def test_a_tone_is_loudest_in_the_mel_that_holds_it() -> None:
    tone = np.sin(2 * np.pi * 3000 / 16_000 * np.arange(16_000))
    corners_hz = mel_corners_hz(80)
    row = int(log_mel_spectrogram(tone)[:, 50].argmax())
    assert corners_hz[row] < 3000 < corners_hz[row + 2]


def test_the_samples_are_not_changed_and_every_float_type_is_taken() -> None:
    samples = noise(1000).astype(np.float32)
    before = samples.copy()
    features = log_mel_spectrogram(samples)
    np.testing.assert_array_equal(samples, before)
    np.testing.assert_array_equal(log_mel_spectrogram(samples.astype(np.float64)), features)
    np.testing.assert_array_equal(log_mel_spectrogram(samples.tolist()), features)
    np.testing.assert_array_equal(log_mel_spectrogram(np.repeat(samples, 2)[::2]), features)


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
        log_mel_spectrogram(noise(1600), n_mels)


# The recording and WAV files


def test_recording_is_five_seconds_of_16_khz_mono_and_not_silent() -> None:
    with wave.open(str(SPEECH)) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (16_000, 1, 2)
        frames = wav.getnframes()
    samples = speech_sample()
    assert samples.shape == (frames,)
    assert samples.dtype == np.float32
    assert len(samples) >= 5 * 16_000
    assert 10 ** (-4 / 20) < np.abs(samples).max() < 10 ** (-2 / 20)  # peak at -3 dBFS
    half_seconds = samples[: 5 * 16_000].reshape(-1, 8000)
    assert np.sqrt(np.mean(half_seconds**2, axis=1)).min() > 0.01
    assert SPEECH.stat().st_size < 250_000


def test_wav_values_are_pcm_over_32768(tmp_path: Path) -> None:
    pcm = np.array([-32768, -1, 0, 1, 16384, 32767], dtype="<i2")
    samples = read_wav(write_wav(tmp_path / "a.wav", pcm.tobytes()))
    expected = np.array([-1, -(2.0**-15), 0, 2.0**-15, 0.5, 1 - 2.0**-15], dtype=np.float32)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, expected)
    np.testing.assert_array_equal(read_wav(str(tmp_path / "a.wav")), expected)


@pytest.mark.parametrize(
    ("rate_hz", "channels", "sample_bytes", "given"),
    [
        (44_100, 1, 2, "44100 Hz, 1 channel(s), 16 bits"),
        (16_000, 2, 2, "16000 Hz, 2 channel(s), 16 bits"),
        (16_000, 1, 1, "16000 Hz, 1 channel(s), 8 bits"),
        (16_000, 1, 3, "16000 Hz, 1 channel(s), 24 bits"),
    ],
)
def test_other_wav_formats_are_refused_with_the_command_that_converts(
    tmp_path: Path, rate_hz: int, channels: int, sample_bytes: int, given: str
) -> None:
    path = write_wav(tmp_path / "my talk.wav", bytes(24), rate_hz, channels, sample_bytes)
    with pytest.raises(AudioError, match=re.escape(given)) as caught:
        read_wav(path)
    message = str(caught.value)
    assert "allowed is WAV, 16000 Hz, mono, 16-bit PCM" in message
    assert f"ffmpeg -i '{path}' -ar 16000 -ac 1 -c:a pcm_s16le" in message


def float_wav() -> bytes:
    header = bytearray(SPEECH.read_bytes()[:44])
    header[20:22] = (3).to_bytes(2, "little")  # format tag 3: IEEE float
    return bytes(header)


@pytest.mark.parametrize(
    "content",
    [b"", b"RIFF", b"ID3 this is an MP3 file, not a WAV file", float_wav()],
    ids=["empty", "header cut", "another format", "float samples"],
)
def test_files_that_are_no_pcm_wav_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.wav: no PCM WAV file \(.+\).*ffmpeg -i"):
        read_wav(path)


@pytest.mark.parametrize("kept_bytes", [0, 101, 1000])
def test_wav_that_is_cut_short_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(SPEECH.read_bytes()[: 44 + kept_bytes])
    with pytest.raises(AudioError, match=rf"cut short \({kept_bytes} bytes .*ffmpeg -i"):
        read_wav(path)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_wav(tmp_path / "absent.wav")


# Samples that cannot be used


@pytest.mark.parametrize("count", [0, 1, 200])
def test_too_few_samples_are_refused_with_the_minimum(count: int) -> None:
    with pytest.raises(AudioError, match=rf"^{count} samples, at least 201 .*pad with zeros"):
        log_mel_spectrogram(noise(count))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_place(value: float) -> None:
    samples = noise(1600)
    samples[[7, 9]] = value
    with pytest.raises(AudioError, match=r"2 of 1600 samples .* index 7; .*nan_to_num"):
        log_mel_spectrogram(samples)


@pytest.mark.parametrize("shape", [(), (2, 1600), (1600, 1)])
def test_samples_of_other_than_one_dimension_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match=re.escape(f"shape {shape}, one dimension is needed")):
        log_mel_spectrogram(np.zeros(shape))


@pytest.mark.parametrize("dtype", [np.int16, np.complex128, np.bool_])
def test_samples_that_are_not_floating_point_are_refused(dtype: type[np.generic]) -> None:
    name = np.dtype(dtype).name
    with pytest.raises(AudioError, match=rf"samples are {name}, floating point .*divide by 32768"):
        log_mel_spectrogram(np.zeros(1600, dtype))


def test_docstring_examples_run() -> None:
    result = doctest.testmod(audio)
    assert result.attempted > 0
    assert result.failed == 0
