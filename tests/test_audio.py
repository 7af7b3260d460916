"""Samples: the recording, WAV files and windows; refusals name their cure."""

from __future__ import annotations

import doctest
import re
import wave
from pathlib import Path

import numpy as np
import pytest

from npu_matmul.whisper import audio
from npu_matmul.whisper.audio import AudioError, checked, pad_or_trim, read_wav, speech_sample

SPEECH = Path(audio.__file__).parents[1] / "data" / "speech.wav"


def write_wav(
    path: Path, data: bytes, rate_hz: int = 16_000, channels: int = 1, sample_bytes: int = 2
) -> Path:
    with wave.open(str(path), "wb") as wav:
        wav.setframerate(rate_hz)
        wav.setnchannels(channels)
        wav.setsampwidth(sample_bytes)
        wav.writeframes(data)
    return path


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


# Windows


@pytest.mark.parametrize("count", [0, 1, 479_999, 480_000, 480_001])
def test_pad_or_trim_makes_30_s(count: int) -> None:
    samples = np.arange(1, count + 1, dtype=np.float32)
    window = pad_or_trim(samples)
    assert window.shape == (480_000,) and window.dtype == np.float32
    np.testing.assert_array_equal(window[:count], samples[:480_000])
    assert not window[count:].any()


@pytest.mark.parametrize("shape", [(), (16_000, 2), (2, 16_000)])
def test_only_one_channel_is_padded(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match=re.escape(f"shape {shape}, one dimension is needed")):
        pad_or_trim(np.zeros(shape, np.float32))


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length=-1 samples: it must not be negative"):
        pad_or_trim([0.5, 0.25], -1)
    assert len(pad_or_trim([0.5], 0)) == 0


# Samples that cannot be used


@pytest.mark.parametrize("count", [0, 1, 200])
def test_too_few_samples_are_refused_with_the_minimum(count: int) -> None:
    with pytest.raises(AudioError, match=rf"^{count} samples, at least 201 .*pad with zeros"):
        checked(np.zeros(count), at_least=201)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, -1e300])
def test_samples_that_are_not_finite_or_absurd_are_refused_with_their_place(value: float) -> None:
    samples = np.zeros(1600)
    samples[[7, 9]] = value
    with pytest.raises(AudioError, match=r"2 of 1600 samples .* index 7; .*nan_to_num"):
        checked(samples)


@pytest.mark.parametrize("shape", [(), (2, 1600), (1600, 1)])
def test_samples_of_other_than_one_dimension_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match=re.escape(f"shape {shape}, one dimension is needed")):
        checked(np.zeros(shape))


@pytest.mark.parametrize("dtype", [np.int16, np.complex128, np.bool_])
def test_samples_that_are_not_floating_point_are_refused(dtype: type[np.generic]) -> None:
    name = np.dtype(dtype).name
    with pytest.raises(AudioError, match=rf"samples are {name}, floating point .*divide by 32768"):
        checked(np.zeros(1600, dtype))


def test_docstring_examples_run() -> None:
    result = doctest.testmod(audio)
    assert result.attempted > 0
    assert result.failed == 0
