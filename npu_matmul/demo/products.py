"""The first part of the demonstration: speech through the projections of a Whisper-tiny layer, on
an NPU by all three strategies.

The recording's log-mel features pass the convolutions on the host, are quantised to int8, and are
multiplied with the query, key, value and output weights of one encoder layer. Weights are seeded
random numbers of the real shapes: the products are real, what they mean is not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.choose import kernels_for
from npu_matmul.device import Device, NpuDevice, open_device
from npu_matmul.kernel import no_kernel
from npu_matmul.matmul import npu_matmul
from npu_matmul.precision import EXACT
from npu_matmul.report import CallReport, last_call
from npu_matmul.strategies import STRATEGIES
from npu_matmul.whisper.audio import speech_sample
from npu_matmul.whisper.dimensions import SEED, SIZES, STRIDE, random_tensors
from npu_matmul.whisper.elementwise import gelu
from npu_matmul.whisper.mel import host_log_mel_spectrogram
from npu_matmul.whisper.model import Conv1d

SIZE = "tiny"
PROJECTIONS = ("query", "key", "value", "out")


@dataclass(frozen=True)
class Inputs:
    """int8 activations (frames / 2, 384), and the weights (384, 384) of the four projections."""

    activations: NDArray[np.int8]
    weights: dict[str, NDArray[np.int8]]


@dataclass
class Outcome:
    """What all projections took by one strategy, or on a device that has none, and how many values
    differ from np.matmul."""

    how: str
    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0
    values: int = 0
    wrong: int = 0
    padding: float = 0.0
    kernel: str | None = None
    arithmetic: str = ""

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
        self.arithmetic = report.arithmetic


def make_inputs() -> Inputs:
    """The shipped recording's features as int8 activations, and seeded weights."""
    tensors, cpu = random_tensors(SIZES[SIZE], SEED), open_device("cpu")
    hidden = host_log_mel_spectrogram(speech_sample(), SIZES[SIZE].n_mels).T
    for name, stride in (("conv1", 1), ("conv2", STRIDE)):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        convolve = Conv1d(name, weight, bias, cpu, "bf16x3", stride)
        hidden = gelu(convolve(hidden), convolve.bias)
    weights = {name: tensors[f"blocks.0.attn.{name}.weight"].T for name in PROJECTIONS}
    return Inputs(_quantise(hidden), {name: _quantise(weight) for name, weight in weights.items()})


def kernels(device: NpuDevice) -> list[str]:
    """The kernels that can compute these products there; where none is built, all that could."""
    found = kernels_for(EXACT.types, device.target)
    if not found:
        raise no_kernel("int8 operands", device.target.name)
    return [kernel.name for kernel in list(filter(device.can_load, found)) or found]


def run(
    inputs: Inputs,
    device: Device,
    kernel: str | None = None,
    show: Callable[[str, int], None] = lambda *_: None,
) -> list[Outcome]:
    """Every projection on ``device``, on an NPU by every strategy; ``show`` is told how many
    products are done."""
    activations = inputs.activations
    strategies = list(STRATEGIES) if isinstance(device, NpuDevice) else [None]
    wanted = {
        name: np.matmul(activations.astype(np.int32), weight.astype(np.int32))
        for name, weight in inputs.weights.items()
    }
    outcomes = []
    for strategy in strategies:
        multiply = partial(
            npu_matmul, dtype=np.int32, device=device, kernel=kernel, strategy=strategy
        )
        one = activations[:1, :1]
        multiply(one, one)  # compiles the host loops, so that no seconds below hold that
        outcome = Outcome(strategy or device.name)
        show(outcome.how, 0)
        for done, (name, weight) in enumerate(inputs.weights.items(), start=1):
            start = time.perf_counter()
            got = multiply(activations, weight)
            outcome.add(last_call(), time.perf_counter() - start, got, wanted[name])
            show(outcome.how, done)
        outcomes.append(outcome)
    return outcomes


def _quantise(x: NDArray[np.float32]) -> NDArray[np.int8]:
    """Symmetric int8 with one scale: the largest magnitude becomes 127."""
    scaled: NDArray[np.float32] = np.rint(x * (127 / np.abs(x).max()))
    return scaled.astype(np.int8)
