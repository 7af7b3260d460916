"""The first part of the demonstration: speech through the projections of a Whisper-tiny layer, by
all three strategies.

The recording's log-mel features pass a convolution front end on the host, are quantised to int8,
and are multiplied with the query, key, value and output weights of one encoder layer. Weights are
seeded random numbers of the real shapes: the products are real, what they mean is not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.choose import kernels_for
from npu_matmul.matmul import npu_matmul
from npu_matmul.precision import EXACT
from npu_matmul.report import CallReport, last_call
from npu_matmul.strategies import STRATEGIES
from npu_matmul.whisper.audio import speech_sample
from npu_matmul.whisper.mel import host_log_mel_spectrogram

STATE = 384  # n_audio_state of Whisper tiny
MELS = 80
PROJECTIONS = ("query", "key", "value", "out")
SEED = 2024


@dataclass(frozen=True)
class Inputs:
    """int8 activations (frames / 2, 384), and the weights (384, 384) of the four projections."""

    activations: NDArray[np.int8]
    weights: dict[str, NDArray[np.int8]]


@dataclass
class Outcome:
    """What one strategy took for all projections, and how many values differ from np.matmul."""

    strategy: str
    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0
    values: int = 0
    wrong: int = 0
    padding: float = 0.0
    kernel: str | None = None

    def add(self, report: CallReport, wall_s: float, got: NDArray[Any], want: NDArray[Any]) -> None:
        """Count one product in."""
        for name in ("launches", "syncs_to_device", "syncs_from_device"):
            self.counts[name] += getattr(report, name)
        for name in ("bytes_to_device", "bytes_from_device"):
            self.counts[name] += getattr(report, name)
        self.seconds.update(report.seconds)
        self.wall_s += wall_s
        self.values += want.size
        self.wrong += int(np.count_nonzero(got != want))
        self.padding, self.kernel = report.padding, report.kernel


def make_inputs() -> Inputs:
    """The shipped recording's features as int8 activations, and seeded weights."""
    random = np.random.default_rng(SEED)
    mel = host_log_mel_spectrogram(speech_sample(), MELS)
    first = random.normal(0, (3 * MELS) ** -0.5, (3 * MELS, STATE))
    second = random.normal(0, (3 * STATE) ** -0.5, (3 * STATE, STATE))
    hidden = _gelu(_windows(mel.T, step=1) @ first)
    hidden = _gelu(_windows(hidden, step=2) @ second)
    weights = {name: _quantise(random.normal(0, 1, (STATE, STATE))) for name in PROJECTIONS}
    return Inputs(_quantise(hidden), weights)


def kernels() -> list[str]:
    """The kernels that can compute these products."""
    return [kernel.name for kernel in kernels_for(EXACT.types)]


def run(
    inputs: Inputs,
    device: str,
    kernel: str | None = None,
    show: Callable[[str, int], None] = lambda *_: None,
) -> list[Outcome]:
    """Every projection by every strategy on ``device``; ``show`` is told how many products are
    done."""
    activations = inputs.activations
    for strategy in STRATEGIES:  # compiles the host loops, so that no strategy's seconds hold that
        warm = activations[:1, :1]
        npu_matmul(warm, warm, device=device, kernel=kernel, strategy=strategy)
    wanted = {
        name: np.matmul(activations.astype(np.int32), weight.astype(np.int32))
        for name, weight in inputs.weights.items()
    }
    outcomes = []
    for strategy in STRATEGIES:
        outcome = Outcome(strategy)
        show(strategy, 0)
        for done, (name, weight) in enumerate(inputs.weights.items(), start=1):
            start = time.perf_counter()
            got = npu_matmul(
                activations, weight, dtype=np.int32, device=device, kernel=kernel, strategy=strategy
            )
            outcome.add(last_call(), time.perf_counter() - start, got, wanted[name])
            show(strategy, done)
        outcomes.append(outcome)
    return outcomes


def _windows(frames: NDArray[Any], step: int) -> NDArray[np.float64]:
    """Rows of three neighbouring frames each, zeros beyond the ends: a convolution as a product."""
    padded = np.pad(frames.astype(np.float64), ((1, 1), (0, 0)))
    return np.concatenate([padded[i : len(padded) - 2 + i : step] for i in range(3)], axis=1)


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """GELU in its tanh form: Hendrycks and Gimpel, 2016, equation 2."""
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)))


def _quantise(x: NDArray[np.float64]) -> NDArray[np.int8]:
    """Symmetric int8 with one scale: the largest magnitude becomes 127."""
    scaled: NDArray[np.float64] = np.rint(x * (127 / np.abs(x).max()))
    return scaled.astype(np.int8)
