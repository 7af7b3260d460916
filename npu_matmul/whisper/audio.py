"""Audio in, log-mel features out: the input side of the Whisper encoder, in plain NumPy.

In: a 16 kHz mono 16-bit WAV file, or float samples in [-1, 1). Out: float32 features
(n_mels, frames), 100 frames per second of audio, equal to those of openai-whisper.

The trap: the dynamic range is cut relative to the loudest value of the whole input, so the features
of a part are not a part of the features.
"""

from __future__ import annotations

import importlib.resources
import os
import shlex
import wave
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAMPLE_RATE_HZ = 16_000
SAMPLE_BYTES = 2  # signed 16-bit PCM
FULL_SCALE = 2 ** (8 * SAMPLE_BYTES - 1)  # 32768: PCM value of the sample 1.0

N_FFT = 400  # samples per window: 25 ms
HOP = 160  # samples from one window to the next: 10 ms
N_BINS = N_FFT // 2 + 1  # 201 frequencies of a real spectrum, 0 Hz and 8 kHz included
BIN_HZ = SAMPLE_RATE_HZ / N_FFT  # 40.0 Hz from one frequency to the next
MIN_SAMPLES = N_FFT // 2 + 1  # 201: reflecting N_FFT // 2 samples needs one more to reflect about

POWER_FLOOR = 1e-10  # the logarithm of silence is -10
LOG_RANGE = 8.0  # decades of power kept below the loudest value, 80 dB

# Slaney's mel scale: linear up to 1 kHz, then 27 steps for each factor of 6.4 in frequency.
MEL_HZ = 200 / 3  # width of one mel in the linear part
MEL_BREAK_HZ = 1000.0
MEL_BREAK = MEL_BREAK_HZ / MEL_HZ  # 15 mel
MEL_LOG_STEP = np.log(6.4) / 27  # log(frequency ratio) of one mel in the logarithmic part


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


def mel_filters(n_mels: int = 80) -> NDArray[np.float32]:
    """Whisper's mel bank: float32, shape (n_mels, 201), in 1/Hz; columns are bins of 40 Hz.

    Row i is a triangle over frequency. It starts at the peak of row i - 1 and ends at that of row
    i + 1; the n_mels + 2 corners are equally spaced in mel from 0 Hz to 8 kHz. Its height is
    2 / (its width in Hz), so that each triangle has area 1. Scale and normalisation: M. Slaney,
    Auditory Toolbox, Interval Research Technical Report 1998-010 (mfcc), also librosa's default.

    Raises:
        AudioError: n_mels is below 1, or so large that a filter falls between two bins. Whisper
            uses 80 (tiny to large-v2) and 128 (large-v3).

    Example:
        >>> filters = mel_filters(80)
        >>> filters.shape, filters.dtype
        ((80, 201), dtype('float32'))
        >>> round(float(filters[79].sum() * BIN_HZ), 2)  # area of the widest filter
        1.0
    """
    cure = "use 80 (Whisper tiny to large-v2) or 128 (large-v3)"
    if n_mels < 1:
        raise AudioError(f"n_mels is {n_mels}, at least 1 is needed: {cure}")
    corners_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE_HZ / 2), n_mels + 2))
    low, peak, high = (
        c[:, np.newaxis] for c in (corners_hz[:-2], corners_hz[1:-1], corners_hz[2:])
    )
    bins_hz = np.arange(N_BINS) * BIN_HZ
    rising = (bins_hz - low) / (peak - low)
    falling = (high - bins_hz) / (high - peak)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    if not triangles.any(axis=1).all():
        raise AudioError(
            f"n_mels is {n_mels}: with {BIN_HZ:g} Hz bins some filters would be empty: {cure}"
        )
    return (triangles * (2.0 / (high - low))).astype(np.float32)


def log_mel_spectrogram(samples: ArrayLike, n_mels: int = 80) -> NDArray[np.float32]:
    """Whisper's features of 16 kHz samples: float32, shape (n_mels, len(samples) // 160).

    ``samples`` is real floating point, shape (samples,), in [-1, 1). Column t describes the 25 ms
    around sample 160 * t; columns are 10 ms apart. The definition is that of openai-whisper
    (``whisper.audio.log_mel_spectrogram``; Radford et al. 2022, section 2.2):

    1. power spectra of Hann-windowed frames, the signal reflected at both ends, without the last;
    2. the mel bank of :func:`mel_filters` applied to them;
    3. x = log10(max(mel, 1e-10)), raised to at least max(x) - 8 over the whole input;
    4. (x + 4) / 4.

    All of it is computed in float64 and rounded once at the end.

    Raises:
        AudioError: samples that are not one-dimensional, not floating point, fewer than 201, or not
            finite; an n_mels that :func:`mel_filters` refuses.

    Example:
        >>> second = np.sin(2 * np.pi * 440 / SAMPLE_RATE_HZ * np.arange(SAMPLE_RATE_HZ))
        >>> features = log_mel_spectrogram(second, n_mels=80)
        >>> features.shape, features.dtype
        ((80, 100), dtype('float32'))
    """
    mel = mel_filters(n_mels).astype(np.float64) @ _power_spectra(_checked(samples)).T
    log_mel = np.log10(np.maximum(mel, POWER_FLOOR))
    log_mel = np.maximum(log_mel, log_mel.max() - LOG_RANGE)
    return np.asarray((log_mel + 4.0) / 4.0, dtype=np.float32)


def _power_spectra(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """|DFT|**2 of the windowed frames, shape (len(samples) // HOP, N_BINS).

    Frame t is centred on sample t * HOP::

        frame  samples (negative: reflected, -i is sample i)
        0      -200 .. 199
        1       -40 .. 359
        2       120 .. 519
    """
    padded = np.pad(samples, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    # The last frame is dropped so that N hops of audio give N frames, not N + 1.
    spectra = np.fft.rfft(frames[:-1] * _hann_window(), axis=1)
    return spectra.real**2 + spectra.imag**2


def _hann_window() -> NDArray[np.float64]:
    """Periodic Hann window, 0.5 - 0.5 cos(2 pi n / N): its second zero, n = N, is left out."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT)


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: hz / 66.67 up to 1 kHz (15 mel), logarithmic above."""
    if hz < MEL_BREAK_HZ:
        return hz / MEL_HZ
    return float(MEL_BREAK + np.log(hz / MEL_BREAK_HZ) / MEL_LOG_STEP)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of :func:`_hz_to_mel`, element by element."""
    logarithmic = MEL_BREAK_HZ * np.exp(MEL_LOG_STEP * (mel - MEL_BREAK))
    return np.where(mel < MEL_BREAK, mel * MEL_HZ, logarithmic)


def _checked(samples: ArrayLike) -> NDArray[np.float64]:
    """The samples as float64, or an AudioError that says what to change."""
    array = np.asarray(samples)
    if array.ndim != 1:
        raise AudioError(
            f"samples have shape {array.shape}, one dimension is needed: "
            "pass one channel, e.g. samples.mean(axis=channel_axis)"
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"samples are {array.dtype}, floating point in [-1, 1) is needed: "
            f"for 16-bit PCM divide by {FULL_SCALE}"
        )
    if len(array) < MIN_SAMPLES:
        raise AudioError(
            f"{len(array)} samples, at least {MIN_SAMPLES} "
            f"({1000 * MIN_SAMPLES / SAMPLE_RATE_HZ:.1f} ms at {SAMPLE_RATE_HZ} Hz) are needed: "
            "pad with zeros or pass a longer recording"
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise AudioError(
            f"{len(bad)} of {len(array)} samples are NaN or infinite, the first at index {bad[0]}; "
            "finite samples are needed: find their source, or replace them with np.nan_to_num"
        )
    return array.astype(np.float64)


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
