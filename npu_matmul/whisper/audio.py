"""Samples: 16 kHz, one channel, floats in [-1, 1); the recording of the package, windows of 30 s.

``files.py`` reads any other audio as such samples; ``mel.py`` makes features of them.
"""

from __future__ import annotations

import importlib.resources
import os
import shlex
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAMPLE_RATE_HZ = 16_000
SAMPLE_BYTES = 2  # signed 16-bit PCM
FULL_SCALE = 2 ** (8 * SAMPLE_BYTES - 1)  # 32768: PCM value of the sample 1.0

# Full scale of 32-bit integers, the loudest that a writer may have left unscaled. Of samples from
# 1e17 on, float32 cannot hold the power of a frame.
LOUDEST = 2.0**31
UNUSABLE = f"NaN, infinite or beyond {LOUDEST:.0f}"

WINDOW_S = 30  # what the encoder sees at once
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE_HZ  # 480,000


class AudioError(ValueError):
    """Audio that cannot be used; the message says what was given, what is allowed and the cure."""


def read_wav(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Samples of a 16 kHz mono 16-bit PCM WAV file: float32, shape (samples,), in [-1, 1).

    Nothing is resampled or mixed down here: other formats are refused, with the command that
    converts. A sample is its PCM value divided by 32768, so that every value is exact in float32.

    Raises:
        AudioError: not a WAV file, another format, or fewer samples than the header promises.
        OSError: the file cannot be opened.

    Example:
        >>> from pathlib import Path
        >>> import npu_matmul
        >>> samples = read_wav(Path(npu_matmul.__file__).parent / "data" / "speech.wav")
        >>> samples.dtype, samples.ndim
        (dtype('float32'), 1)
    """
    try:
        with Path(path).open("rb") as file, wave.open(file) as wav:
            _check_format(path, wav)
            promised = wav.getnframes()
            data = wav.readframes(promised)
    except (wave.Error, EOFError) as error:
        reason = str(error) or "the file ends early"
        raise AudioError(_refusal(path, f"no PCM WAV file ({reason})")) from error
    if len(data) != promised * SAMPLE_BYTES:
        found = f"cut short ({len(data)} bytes of sound, header says {promised * SAMPLE_BYTES})"
        raise AudioError(_refusal(path, found))
    return np.asarray(np.frombuffer(data, dtype="<i2") / FULL_SCALE, dtype=np.float32)


def speech_sample() -> NDArray[np.float32]:
    """The recording that comes with the package: float32, shape (samples,), 16 kHz, in [-1, 1).

    A synthetic voice (espeak-ng) says: "To multiply two matrices, pair each row of the first with
    each column of the second and add up the products."

    Raises:
        AudioError, OSError: the installed file is damaged or missing (see :func:`read_wav`).

    Example:
        >>> samples = speech_sample()
        >>> round(len(samples) / SAMPLE_RATE_HZ, 2)  # seconds
        6.59
    """
    resource = importlib.resources.files("npu_matmul") / "data" / "speech.wav"
    with importlib.resources.as_file(resource) as path:
        return read_wav(path)


def pad_or_trim(samples: ArrayLike, length: int = WINDOW_SAMPLES) -> NDArray[Any]:
    """The first ``length`` samples of one channel; zeros after them where there are fewer.

    Raises:
        AudioError: samples that are not one-dimensional.
        ValueError: a negative length.

    >>> pad_or_trim([0.5, 0.25], 3).tolist(), pad_or_trim([0.5, 0.25], 1).tolist()
    ([0.5, 0.25, 0.0], [0.5])
    """
    array = _one_channel(samples)
    if length < 0:
        raise ValueError(f"length={length} samples: it must not be negative")
    return np.pad(array[:length], (0, max(0, length - len(array))))


def checked(samples: ArrayLike, at_least: int = 1) -> NDArray[Any]:
    """The samples as an array, or an AudioError that says what to change."""
    array = _one_channel(samples)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"samples are {array.dtype}, floating point in [-1, 1) is needed: "
            f"for 16-bit PCM divide by {FULL_SCALE}"
        )
    if len(array) < at_least:
        raise AudioError(
            f"{len(array)} samples, at least {at_least} "
            f"({1000 * at_least / SAMPLE_RATE_HZ:.1f} ms at {SAMPLE_RATE_HZ} Hz) are needed: "
            "pad with zeros or pass a longer recording"
        )
    bad = np.flatnonzero(~usable(array))
    if len(bad):
        raise AudioError(
            f"{len(bad)} of {len(array)} samples are {UNUSABLE}, the first, {array[bad[0]]:g}, at "
            f"index {bad[0]}; find their source, or replace them (np.nan_to_num, np.clip)"
        )
    return array


def usable(samples: NDArray[Any]) -> NDArray[np.bool_]:
    """Which samples can be a sound: numbers, not beyond :data:`LOUDEST`."""
    found: NDArray[np.bool_] = np.abs(samples) <= LOUDEST  # false of NaN
    return found


def _one_channel(samples: ArrayLike) -> NDArray[Any]:
    array = np.asarray(samples)
    if array.ndim != 1:
        raise AudioError(
            f"samples have shape {array.shape}, one dimension is needed: "
            "pass one channel, e.g. samples.mean(axis=channel_axis)"
        )
    return array


def _check_format(path: str | os.PathLike[str], wav: wave.Wave_read) -> None:
    found = (wav.getframerate(), wav.getnchannels(), wav.getsampwidth())
    if found != (SAMPLE_RATE_HZ, 1, SAMPLE_BYTES):
        rate_hz, channels, sample_bytes = found
        given = f"{rate_hz} Hz, {channels} channel(s), {8 * sample_bytes} bits"
        raise AudioError(_refusal(path, given))


def _refusal(path: str | os.PathLike[str], found: str) -> str:
    return (
        f"{os.fspath(path)}: {found}; allowed is WAV, {SAMPLE_RATE_HZ} Hz, mono, 16-bit PCM. "
        f"Convert: ffmpeg -i {shlex.quote(os.fspath(path))} -ar {SAMPLE_RATE_HZ} -ac 1 "
        "-c:a pcm_s16le converted.wav"
    )
