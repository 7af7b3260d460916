"""Log-mel features of samples, as matrix products: the input of the Whisper encoder.

Comes in: samples of :mod:`npu_matmul.whisper.audio`. Goes out: float32 features (n_mels, frames),
100 frames per second of audio.

The trap: the dynamic range is cut relative to the loudest value of the whole input, so the features
of a part are not a part of the features. Long audio is therefore taken in windows of 30 s, each
with its own range: what Whisper was trained on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npu_matmul.device import Device, open_device
from npu_matmul.matmul import pack_b
from npu_matmul.whisper import ledger
from npu_matmul.whisper.audio import SAMPLE_RATE_HZ, AudioError, checked

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


class LogMel:
    """Features by two products per call, however many frames: one with the windowed Fourier
    transform, one with the mel bank. Both matrices are packed once and stay on the device.

    Frames are rows of the first product: a view of the samples, in which rows overlap.

    Differences to openai-whisper's features of the package's recording, whose values span 2.0;
    measured for 80 and 128 mels, rounded up:

    ========= ========== ================= =======
    precision mean error 99.9th percentile maximum
    ========= ========== ================= =======
    bf16x3    7e-6       4e-4              7e-4
    bf16      7e-3       0.22              0.34
    int8      0.24       1.3               1.4
    ========= ========== ================= =======

    bf16 alone is not enough: what rounding leaves of a loud frequency, 1/512 of it, is above the
    quiet ones beside it, of which the logarithm makes much.

    >>> LogMel(80, device="cpu")(np.zeros(1600)).shape
    (80, 10)
    """

    def __init__(
        self, n_mels: int = 80, *, device: str | Device | None = None, precision: str = "bf16x3"
    ) -> None:
        self.n_mels = n_mels
        opened = device if isinstance(device, Device) else open_device(device or "auto")
        bank = mel_filters(n_mels).T
        self.transform = pack_b(_windowed_transform(), device=opened, precision=precision)
        self.bank = pack_b(bank, device=opened, precision=precision)

    def __call__(self, samples: ArrayLike) -> NDArray[np.float32]:
        """Features (n_mels, len(samples) // 160); see :func:`log_mel_spectrogram`."""
        with ledger.stage("frames"):
            frames = _frames(np.asarray(checked(samples, MIN_SAMPLES), np.float32))
        spectra = ledger.product("mel.transform", frames, self.transform)
        with ledger.stage("power"):
            spectra *= spectra
            power = spectra[:, :N_BINS] + spectra[:, N_BINS:]
        mel = ledger.product("mel.bank", power, self.bank)
        with ledger.stage("logarithm"):
            return _log_scale(mel)


def log_mel_spectrogram(
    samples: ArrayLike,
    n_mels: int = 80,
    *,
    device: str | Device | None = None,
    precision: str = "bf16x3",
) -> NDArray[np.float32]:
    """Whisper's features of 16 kHz samples: float32, shape (n_mels, len(samples) // 160).

    ``samples`` is real floating point, shape (samples,), in [-1, 1). Column t describes the 25 ms
    around sample 160 * t; columns are 10 ms apart. The definition is that of openai-whisper
    (``whisper.audio.log_mel_spectrogram``; Radford et al. 2022, section 2.2):

    1. power spectra of Hann-windowed frames, the signal reflected at both ends, without the last;
    2. the mel bank of :func:`mel_filters` applied to them;
    3. x = log10(max(mel, 1e-10)), raised to at least max(x) - 8 over the whole input;
    4. (x + 4) / 4.

    1 and 2 are products on ``device``, for errors of ``precision`` see :class:`LogMel`.

    Raises:
        AudioError: samples that are not one-dimensional, not floating point, fewer than 201, or not
            finite; an n_mels that :func:`mel_filters` refuses.

    Example:
        >>> second = np.sin(2 * np.pi * 440 / SAMPLE_RATE_HZ * np.arange(SAMPLE_RATE_HZ))
        >>> features = log_mel_spectrogram(second, n_mels=80, device="cpu")
        >>> features.shape, features.dtype
        ((80, 100), dtype('float32'))
    """
    return LogMel(n_mels, device=device, precision=precision)(samples)


def host_log_mel_spectrogram(samples: ArrayLike, n_mels: int = 80) -> NDArray[np.float32]:
    """What :func:`log_mel_spectrogram` approximates: without a device, in float64 with a fast
    Fourier transform, rounded once at the end. Arguments and errors are the same.

    Example:
        >>> second = np.sin(2 * np.pi * 440 / SAMPLE_RATE_HZ * np.arange(SAMPLE_RATE_HZ))
        >>> features = host_log_mel_spectrogram(second, n_mels=80)
        >>> features.shape, features.dtype
        ((80, 100), dtype('float32'))
    """
    spectra = np.fft.rfft(_frames(checked(samples, MIN_SAMPLES)) * _hann_window(), axis=1)
    power = spectra.real**2 + spectra.imag**2
    return _log_scale(power @ mel_filters(n_mels).astype(np.float64).T)


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


def _frames(samples: NDArray[Any]) -> NDArray[Any]:
    """Overlapping frames, a view of shape (len(samples) // HOP, N_FFT).

    Frame t is centred on sample t * HOP::

        frame  samples (negative: reflected, -i is sample i)
        0      -200 .. 199
        1       -40 .. 359
        2       120 .. 519
    """
    padded = np.pad(samples, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    # The last frame is dropped so that N hops of audio give N frames, not N + 1.
    return frames[: len(samples) // HOP]


def _windowed_transform() -> NDArray[np.float64]:
    """(N_FFT, 2 N_BINS): the windowed Fourier transform, all cosines and then all sines."""
    angles = np.outer(np.arange(N_FFT), np.arange(N_BINS)) * (2 * np.pi / N_FFT)
    window = _hann_window()[:, np.newaxis]
    return np.concatenate([np.cos(angles) * window, np.sin(angles) * window], axis=1)


def _log_scale(mel: NDArray[Any]) -> NDArray[np.float32]:
    """Steps 3 and 4, and frames as columns."""
    log_mel = np.log10(np.maximum(mel.T, POWER_FLOOR))
    log_mel = np.maximum(log_mel, log_mel.max() - LOG_RANGE)
    return np.ascontiguousarray((log_mel + 4.0) / 4.0, dtype=np.float32)


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
