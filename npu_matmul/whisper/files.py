"""Audio files as samples: any format, any rate, any number of channels, any length.

Comes in: a path. Goes out: blocks of 16 kHz mono float32 samples, or windows of 30 s of them, read
as they are asked for, so that memory does not grow with the file. Files are opened by libsndfile
(WAV, FLAC, Ogg, MP3 and more); what it does not know is given to ffmpeg, where that is installed.

``soundfile`` and ``soxr`` come with the extra: ``pip install 'npu-matmul[whisper]'``.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.whisper.audio import (
    SAMPLE_RATE_HZ,
    UNUSABLE,
    WINDOW_SAMPLES,
    AudioError,
    pad_or_trim,
    usable,
)

BLOCK_SAMPLES = 1 << 17  # of all channels together that are read at once: 512 KiB, 8 s of one
UNKNOWN = 1 << 62  # frames; libsndfile has 2**63 - 1 where a FLAC does not tell how many it holds

# In libsndfile's log of a file that it opened.
CHUNK_BYTES = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
NO_LAST_PAGE = "Last page lacks an end-of-stream bit"  # of an Ogg stream
ESTIMATED = re.compile(r"bitrate mode *: constant")  # of an MP3, whose length is then a guess
MP3_FRAME = 1152  # samples at most, of the frame that tells the length; some count it as sound
# Writers that cannot go back, as in a pipe, promise so much or more: sox 0x7FFFF000, others -1.
PIPE_BYTES = 0x7FFF_0000

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class AudioFile:
    """An audio file that can be opened. ``seconds`` is its length, None where only reading tells,
    an estimate for an MP3 of constant bit rate; ``reader`` is "libsndfile" or "ffmpeg"."""

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
            AudioError: samples that are NaN, infinite or absurdly large; damaged, cut short as far
                as its format tells, or without samples.
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
        AudioError: not audio, as far as libsndfile and ffmpeg can tell, or cut short.
        OSError: there is no such file, or it cannot be read.
        ModuleNotFoundError: the extra is not installed.
    """
    soundfile = _soundfile()
    place = Path(path)
    if place.is_fifo():  # libsndfile seeks, and a pipe is read but once
        raise AudioError(f"{place}: a pipe; a file is needed: write the audio to one first")
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
    _check_whole(place, info.extra_info)
    seconds = None if info.frames >= UNKNOWN else info.frames / info.samplerate
    return AudioFile(place, seconds, "libsndfile")


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
            # soundfile else seeks after each read: an error at the end of a FLAC of unknown length,
            # and other samples once more at the end of an MP3 that is shorter than was estimated
            file.seekable = lambda: False
            rate, seen = file.samplerate, 0
            resample = _resampler(rate)
            frames = BLOCK_SAMPLES // file.channels
            while len(block := file.read(frames, dtype="float32", always_2d=True)):
                _check_samples(path, block, seen, rate)
                seen += len(block)
                yield resample(block.mean(axis=1, dtype=np.float32), last=False)
            yield resample(np.empty(0, np.float32), last=True)
            if seen < _at_least(file):
                raise AudioError(f"{path}: cut short: {seen} of {file.frames} samples were found")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: cannot be decoded ({error.error_string})") from error


def _at_least(file: Any) -> int:
    """How many samples a file must have, by what its header tells."""
    if file.frames >= UNKNOWN or ESTIMATED.search(file.extra_info):
        return 0
    return int(file.frames) - (MP3_FRAME if file.format == "MP3" else 0)


def _check_whole(path: Path, log: str) -> None:
    """Refuse a file that ends early, of which libsndfile only notes that in its log."""
    lost = "its last page is missing" if NO_LAST_PAGE in log else ""
    for promised, held in CHUNK_BYTES.findall(log):
        if int(held) < int(promised) < PIPE_BYTES:
            lost = f"{held} of {promised} bytes of sound are there"
    if lost:
        raise AudioError(
            f"{path}: cut short: {lost}; copy the file again, or, if what is there is enough, "
            f"write that as a file of its own: ffmpeg -i {shlex.quote(str(path))} whole.wav"
        )


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
            while data := process.stdout.read(BLOCK_SAMPLES * 4):
                block = np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(np.float32)
                _check_samples(path, block[:, np.newaxis], seen, SAMPLE_RATE_HZ)
                seen += len(block)
                yield block
        except BaseException:  # also when the caller stops reading
            process.kill()
            raise
        failed = process.wait() != 0
        errors.seek(0)
        words = errors.read().decode(errors="replace").strip()
    first = words.partition("\n")[0].rpartition("] ")[2]  # without "[mov @ 0x55d0c8]", who says it
    if failed:
        raise AudioError(f"{path}: ffmpeg cannot read it ({first or 'no reason given'})")
    if words:  # it decodes what it can, and calls that a success
        raise AudioError(
            f"{path}: damaged, as ffmpeg says ({first}); copy the file again, or, if what can "
            f"be decoded is enough: ffmpeg -i {shlex.quote(str(path))} whole.wav"
        )


def _check_samples(path: Path, block: Samples, seen: int, rate: int) -> None:
    good = usable(block)
    if not good.all():
        frame, channel = np.argwhere(~good)[0]
        raise AudioError(
            f"{path}: samples are {UNUSABLE}, the first, {block[frame, channel]:g}, at "
            f"{(seen + frame) / rate:.3f} s; find their source, or replace them (np.nan_to_num, "
            "np.clip) and write the file again"
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
