"""Audio files to encoder features: what ``npu-matmul encode`` does for each file.

A :class:`Settings` says everything that an encoder is made of and can be sent to other processes; a
:class:`Pipeline` is made of it, once per process; a :class:`FileReport` comes back for each file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from npu_matmul.device import Device, NpuDevice, open_device
from npu_matmul.host import scratch
from npu_matmul.whisper import ledger
from npu_matmul.whisper.audio import SAMPLE_RATE_HZ
from npu_matmul.whisper.checkpoint import load_tensors
from npu_matmul.whisper.dimensions import HEAD_WIDTH, POSITIONS, SEED, SIZES, random_tensors
from npu_matmul.whisper.files import open_audio, windows
from npu_matmul.whisper.mel import LogMel
from npu_matmul.whisper.model import AudioEncoder, compile_all, product_names
from npu_matmul.whisper.placement import (
    AttentionRule,
    Decision,
    attention_precisions,
    attention_rule,
    decide,
    precisions,
)
from npu_matmul.writing import whole_file


@dataclass(frozen=True)
class Settings:
    """What encodes: weights from a checkpoint, or seeded ones of a size; where and how.

    ``decided`` is for attention "auto": what :func:`decided` found once, so that all processes
    compute alike. What is not in it each process decides for itself.
    """

    weights: str | None = None
    random: str | None = None
    device: str = "auto"
    precision: tuple[tuple[str, str], ...] = (("*", "bf16"),)
    mel_precision: str = "bf16x3"
    attention: str = "auto"
    decided: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class Job:
    """One file to encode, and where its features go (None: nowhere)."""

    audio: str
    output: str | None = None


@dataclass
class Progress:
    """What is told while a file is encoded; both do nothing unless given.

    ``window(done, of)`` has None where only reading tells how many there are.
    """

    window: Callable[[int, int | None], None] = lambda done, of: None
    layer: Callable[[int, int], None] = lambda done, of: None


@dataclass
class FileReport:
    """What became of one file. ``error`` is empty when it was encoded; seconds are host seconds."""

    audio: str
    output: str | None = None
    error: str = ""
    audio_s: float = 0.0
    wall_s: float = 0.0
    windows: int = 0
    products: dict[str, int] = field(default_factory=dict)  # by place
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of audio: below 1 is faster than real time."""
        return self.wall_s / self.audio_s


class Pipeline:
    """Files to features with one encoder."""

    def __init__(self, settings: Settings) -> None:
        self.source, tensors = _tensors(settings)
        device = open_device(settings.device)
        self.encoder = AudioEncoder(
            tensors,
            device=device,
            precision=settings.precision,
            attention=settings.attention,
            rule=_rule(settings.decided),
            source=self.source,
        )
        self.mel = LogMel(self.encoder.dims.n_mels, device=device, precision=settings.mel_precision)
        compile_all(self.encoder, self.mel)

    def features(
        self, audio: str | os.PathLike[str], progress: Progress | None = None
    ) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Features (1500, n_audio_state) of each 30 s window, and how many of its samples are real.

        Memory does not grow with the file. Each window has its own dynamic range (see ``mel.py``).

        Raises:
            AudioError, OSError: the file cannot be used.
        """
        progress = progress or Progress()
        opened = open_audio(audio)
        layers = self.encoder.dims.n_audio_layer
        progress.window(0, opened.windows)
        reading = windows(opened.blocks())
        done = 0
        while True:
            with ledger.stage("read audio"):
                found = next(reading, None)
            if found is None:
                progress.window(done, done)  # also where a header told otherwise, or nothing
                return
            samples, real = found
            mel = self.mel(samples)
            yield self.encoder(mel, on_layer=lambda layer: progress.layer(layer, layers)), real
            done += 1
            progress.window(done, opened.windows)

    def encode(self, job: Job, progress: Progress | None = None) -> FileReport:
        """Encode one file and write its features; the file's failure is part of the report."""
        report = FileReport(job.audio, job.output)
        start = time.perf_counter()
        samples = 0
        try:
            with ledger.record() as book, _features_file(job.output, self.source) as write:
                for features, real in self.features(job.audio, progress):
                    samples += real
                    report.windows += 1
                    with ledger.stage("write"):
                        write(features, samples / SAMPLE_RATE_HZ)
        except Exception as error:  # one file of many: the others go on, whatever befell it
            report.error = f"{type(error).__name__}: {error}"
        report.wall_s = time.perf_counter() - start
        report.audio_s = samples / SAMPLE_RATE_HZ
        report.products, report.counts = dict(book.products), dict(book.counts)
        report.seconds = dict(book.seconds)
        return report


def decided(settings: Settings) -> Settings:
    """These settings, with where the products inside attention are computed, which depends on how
    fast this host is at the moment.

    Raises:
        ValueError: a precision's pattern that matches no product of any size.
    """
    device = open_device(settings.device)
    if settings.attention != "auto" or not isinstance(device, NpuDevice):
        return settings
    largest = max(SIZES.values(), key=lambda dims: dims.n_audio_layer)
    how = precisions(settings.precision, product_names(largest))
    asked = sorted({"bf16", "bf16x3"} & set(attention_precisions(how)))
    found = (decide(device, POSITIONS, HEAD_WIDTH, precision) for precision in asked)
    return replace(settings, decided=tuple(found))


def _rule(decided: tuple[Decision, ...]) -> AttentionRule:
    """As decided, else :func:`attention_rule`."""
    places = {one.precision: one.place for one in decided}

    def rule(device: Device, tokens: int, head_width: int, precision: str) -> str:
        return places.get(precision) or attention_rule(device, tokens, head_width, precision)

    return rule


_kept: dict[tuple[Settings, Any], Pipeline] = {}


def pipeline(settings: Settings) -> Pipeline:
    """The pipeline of these settings and of what their weights' files hold now. A process keeps the
    last one until :func:`release`."""
    key = settings, _versions(settings.weights)
    if key not in _kept:
        release()  # before: memory may not hold two
        _kept[key] = Pipeline(settings)
    return _kept[key]


def release() -> None:
    """Keep no encoder any longer, neither its weights in memory nor those on a device, nor what it
    worked in."""
    _kept.clear()
    scratch.release()


def encode_job(settings: Settings, job: Job) -> FileReport:
    """Encode one file in whatever process this runs in. Settings that no file could be encoded with
    raise; what befalls the file is in the report."""
    return pipeline(settings).encode(job)


def _versions(weights: str | None) -> tuple[tuple[str, int, int], ...] | None:
    """What tells that files of weights have changed; None where there are none."""
    if weights is None:
        return None
    path = Path(weights)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def _tensors(settings: Settings) -> tuple[str, dict[str, NDArray[Any]]]:
    if (settings.weights is None) == (settings.random is None):
        raise ValueError("either weights or random is needed: a checkpoint's path, or a size")
    if settings.weights is not None:
        return settings.weights, load_tensors(settings.weights)
    assert settings.random is not None
    if settings.random not in SIZES:
        raise ValueError(f"there is no size {settings.random!r}; known are: {', '.join(SIZES)}")
    source = f"random numbers in the shapes of {settings.random}: the features mean nothing"
    return source, random_tensors(SIZES[settings.random], SEED)


@contextmanager
def _features_file(
    output: str | None, source: str
) -> Iterator[Callable[[NDArray[np.float32], float], None]]:
    """``write(features, seconds so far)``; the .npz appears when the block ends without an error.

    It holds ``features`` (windows, 1500, n_audio_state), ``seconds`` of audio, and as ``weights``
    their ``source``. A window's features wait on disk, not in memory, as only the end of the audio
    tells how many there are.
    """
    if output is None:
        yield lambda features, seconds: None
        return
    shape: list[int] = []
    length_s = 0.0
    target = Path(output)
    with tempfile.TemporaryFile(dir=target.parent) as rows:

        def write(features: NDArray[np.float32], seconds: float) -> None:
            nonlocal length_s
            shape[:] = [shape[0] + 1 if shape else 1, *features.shape]
            length_s = seconds
            rows.write(np.ascontiguousarray(features, "<f4").data)

        yield write
        rows.seek(0)
        with whole_file(target) as part, ZipFile(part, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                _copy_as_npy(tuple(shape), rows, member)
            for name, value in (("seconds", np.array(length_s)), ("weights", np.array(source))):
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)


def _copy_as_npy(shape: tuple[int, ...], rows: IO[bytes], member: IO[bytes]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    shutil.copyfileobj(rows, member, 1 << 20)
