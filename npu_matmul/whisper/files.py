"""Audio files as samples: any format, any rate, any number of channels, any length.

Comes in: a path. Goes out: blocks of 16 kHz mono float32 samples, or windows of 30 s of them, read
as they are asked for, so that memory does not grow with the file. Files are opened by libsndfile
(WAV, FLAC, Ogg, MP3 and more); what it does not know is given to ffmpeg, where that is installed.

``soundfile`` and ``soxr`` come with the extra: ``pip install 'npu-matmul[whisper]'``.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.whisper.audio import SAMPLE_RATE_HZ, WINDOW_SAMPLES, AudioError, pad_or_trim

BLOCK_S = 10  # of audio that is read at once
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class AudioFile:
    """An audio file that can be opened. ``seconds`` is its length, None where only reading tells;
    ``reader`` is "libsndfile" or "ffmpeg"."""

    path: Path
    seconds: float | None
    reader: str

    @property
    def windows(self) -> int | None:
        """How many windows of 30 s it has, None where only reading tells."""
        if self.seconds is None:
            return None
        return max(1, math.ceil(round(self.seconds * SAMPLE_RATE_HZ) / WINDOW_SAMPLES))

    def blocks(self) -> Iterator[Samples]:
        """Its samples: 16 kHz, mono, float32, a block at a time.

        Raises:
            AudioError: NaN or infinite samples, a file cut short, or one without samples.
        """
        read = _sndfile_blocks if self.reader == "libsndfile" else _ffmpeg_blocks
        any_samples = False
        for block in read(self.path):
            any_samples = any_samples or len(block) > 0
            yield block
        if not any_samples:
            raise AudioError(f"{self.path}: holds no samples")


def open_audio(path: str | os.PathLike[str]) -> AudioFile:
    """The audio file at ``path``.

    Raises:
        AudioError: not audio, as far as libsndfile and ffmpeg can tell.
        OSError: there is no such file, or it cannot be read.
        ModuleNotFoundError: the extra is not installed.
    """
    soundfile = _soundfile()
    place = Path(path)
    with place.open("rb") as file:
        if not file.read(1):
            raise AudioError(f"{place}: the file is empty")
    try:
        info = soundfile.info(str(place))
    except soundfile.LibsndfileError as error:
        if shutil.which("ffmpeg"):
            return AudioFile(place, None, "ffmpeg")
        raise AudioError(
            f"{place}: not audio that libsndfile can read ({error.error_string}); install ffmpeg "
            "for other formats"
        ) from error
    return AudioFile(place, info.frames / info.samplerate, "libsndfile")


def windows(blocks: Iterable[Samples]) -> Iterator[tuple[Samples, int]]:
    """Windows of 30 s, the last filled up with zeros; with how many of its samples are real.

    >>> [(len(window), real) for window, real in windows([np.ones(480_001, np.float32)])]
    [(480000, 480000), (480000, 1)]
    """
    waiting: list[Samples] = []
    held = 0
    for block in blocks:
        waiting.append(block)
        held += len(block)
        while held >= WINDOW_SAMPLES:
            joined = np.concatenate(waiting)
            yield joined[:WINDOW_SAMPLES], WINDOW_SAMPLES
            waiting = [joined[WINDOW_SAMPLES:]]
            held = len(waiting[0])
    if held:
        yield pad_or_trim(np.concatenate(waiting)), held


def _sndfile_blocks(path: Path) -> Iterator[Samples]:
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate, seen = file.samplerate, 0
            resample = _resampler(rate)
            for block in file.blocks(BLOCK_S * rate, dtype="float32", always_2d=True):
                _check_finite(path, block, seen, rate)
                seen += len(block)
                yield resample(block.mean(axis=1, dtype=np.float32), last=False)
            yield resample(np.empty(0, np.float32), last=True)
            if seen < file.frames:
                raise AudioError(f"{path}: cut short: {seen} of {file.frames} samples were found")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: cannot be decoded ({error.error_string})") from error


def _resampler(rate: int) -> Any:
    """``resample(samples, last=...)`` from ``rate`` to 16 kHz, block after block of one file."""
    if rate == SAMPLE_RATE_HZ:
        return lambda samples, last: samples
    import soxr

    stream = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32")
    return lambda samples, last: stream.resample_chunk(samples, last=last)


def _ffmpeg_blocks(path: Path) -> Iterator[Samples]:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"file:{path}"]
    command += ["-f", "f32le", "-ac", "1", "-ar", str(SAMPLE_RATE_HZ), "-"]
    seen = 0
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None
        try:
            while data := process.stdout.read(BLOCK_S * SAMPLE_RATE_HZ * 4):
                block = np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(np.float32)
                _check_finite(path, block[:, np.newaxis], seen, SAMPLE_RATE_HZ)
                seen += len(block)
                yield block
        except BaseException:  # also when the caller stops reading
            process.kill()
            raise
        if process.wait():
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines() or ["no reason"]
            raise AudioError(f"{path}: ffmpeg cannot read it ({words[-1]})")


def _check_finite(path: Path, block: Samples, seen: int, rate: int) -> None:
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        first = seen + int(np.argmax(bad))
        raise AudioError(
            f"{path}: NaN or infinite samples, the first at {first / rate:.3f} s; find their "
            "source, or replace them (np.nan_to_num) and write the file again"
        )


def _soundfile() -> Any:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "audio files are read with the package soundfile, which is not installed: "
            "pip install 'npu-matmul[whisper]'"
        ) from error
    return soundfile
