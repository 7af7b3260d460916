"""The second part of the demonstration: speech through an encoder of base size.

All of it on a fast device; its first layer also on the emulated NPU, where its counts are taken
and its result compared. Weights are seeded random numbers of the real shapes: the products are
real, what they mean is not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from npu_matmul.choose import choose_kernel, kernels_for
from npu_matmul.device import Device, NpuDevice, auto_choice, open_device
from npu_matmul.host.scratch import Room
from npu_matmul.kernel import load_kernel
from npu_matmul.performance.product import predict
from npu_matmul.precision import EXACT, PRECISIONS
from npu_matmul.report import CallReport
from npu_matmul.strategies import Counts
from npu_matmul.tiler import TileGrid
from npu_matmul.whisper.audio import SAMPLE_RATE_HZ, pad_or_trim, speech_sample
from npu_matmul.whisper.dimensions import SEED, SIZES, random_tensors
from npu_matmul.whisper.elementwise import Floats
from npu_matmul.whisper.ledger import Ledger, places, record
from npu_matmul.whisper.mel import LogMel
from npu_matmul.whisper.model import AudioEncoder, compile_all

SIZE = "base"
PRECISION, MEL_PRECISION = "int8", "bf16x3"
PROJECTIONS = ("attn.qkv", "attn.out", "mlp.0", "mlp.2")
WRAPPER_KERNEL = "matmul_16x16"  # of the tile-by-tile wrapper


@dataclass(frozen=True)
class Projection:
    """One product of the layer: its shape, what the sequential wrapper must cost by formula, what
    the emulated NPU counted, and modelled device seconds of both."""

    name: str
    shape: tuple[int, int, int]
    sequential: Counts
    sequential_s: float
    batched: CallReport
    batched_s: float


@dataclass(frozen=True)
class Shown:
    """What the demonstration found."""

    device: str
    audio_s: float
    wall_s: float
    ledger: Ledger
    features: tuple[int, ...]
    layer_values: int
    layer_wrong: int
    projections: list[Projection]


def fast_device(asked: Device) -> tuple[Device, str]:
    """Where the encoder is computed: on the device that was asked for, or for an emulated one what
    "auto" stands for here. On the CPU in place of another emulated one, or of an NPU whose kernels
    are not built; why, in words."""
    device = asked if asked.name != "emulated" else open_device(auto_choice())
    if device.name == "emulated":
        return open_device("cpu"), "an emulated NPU is no fast device"
    if isinstance(device, NpuDevice):
        for precision in (PRECISION, MEL_PRECISION):
            kernels = kernels_for(PRECISIONS[precision].types, device.target)
            if not any(map(device.can_load, kernels)):
                missing = f"no kernel for {precision} is built for the NPU here"
                return open_device("cpu"), f"{missing}: npu-matmul build"
    return device, ""


def run(device: Device) -> Shown:
    """The recording through the encoder on ``device``, and its first layer on the emulated NPU."""
    samples = speech_sample()
    tensors = random_tensors(SIZES[SIZE], SEED)
    # attention on the host, also of an NPU, so that both compute it alike
    options: dict[str, Any] = {"precision": PRECISION, "attention": "host"}
    encoder = AudioEncoder(tensors, device=device, **options)
    log_mel = LogMel(encoder.dims.n_mels, device=device, precision=MEL_PRECISION)
    compile_all(encoder, log_mel)
    start = time.perf_counter()
    with record() as ledger:
        mel = log_mel(pad_or_trim(samples))
        features = encoder(mel)
    wall_s = time.perf_counter() - start
    one_layer = {name: t for name, t in tensors.items() if _within_first_layer(name)}
    emulated = AudioEncoder(one_layer, device="emulated", **options)
    given = encoder.front_end(mel)
    want = _first_block(encoder, given)
    with record() as counted:
        got = _first_block(emulated, given)
    return Shown(
        device=device.name,
        audio_s=len(samples) / SAMPLE_RATE_HZ,
        wall_s=wall_s,
        ledger=ledger,
        features=features.shape,
        layer_values=want.size,
        layer_wrong=int(np.count_nonzero(got != want)),
        projections=[_projection(name, emulated, counted) for name in PROJECTIONS],
    )


def _projection(name: str, encoder: AudioEncoder, ledger: Ledger) -> Projection:
    block = encoder.blocks[0]
    linear = dict(zip(PROJECTIONS, (block.attn.qkv[0], block.attn.out, *block.mlp), strict=True))
    depth, columns = linear[name].weight.shape
    shape = encoder.dims.n_audio_ctx, depth, columns
    report = ledger.reports[f"blocks.0.{name}"]
    assert report.kernel is not None and report.strategy is not None
    grid = TileGrid(choose_kernel(report.kernel, EXACT.types, shape)[0], *shape)
    sequential = predict(TileGrid(load_kernel(WRAPPER_KERNEL), *shape), "sequential")
    batched = predict(grid, report.strategy, resident=True)
    return Projection(name, shape, sequential.counts, sequential.device_s, report, batched.device_s)


def _first_block(encoder: AudioEncoder, given: Floats) -> Floats:
    return encoder.blocks[0](given.copy(), encoder.dims.n_audio_ctx, Room())


def _within_first_layer(name: str) -> bool:
    return not name.startswith("blocks.") or name.startswith("blocks.0.")


def show(shown: Shown, console: Console) -> None:
    """Print it: the encoder, the layer, the table of projections."""
    factor = shown.wall_s / shown.audio_s
    console.print(
        f"{shown.audio_s:.2f} s of speech to features {shown.features} in {shown.wall_s:.2f} s on "
        f"{places(shown.ledger.products)}: real-time factor {factor:.3f}",
        highlight=False,
    )
    console.print(_projection_table(shown.projections))
    console.print(
        "sequential wrapper: counts by formula, to which tests hold what the device counts; its "
        f"kernel is {WRAPPER_KERNEL}.\nbatched: counted by the emulated NPU in this run; weights "
        "are resident and move no bytes.\nmodelled: device time as npu-matmul plan models it, from "
        "published figures; measured nowhere.\n",
        highlight=False,
    )
    if shown.layer_wrong:
        wrong = f"{shown.layer_wrong:,} of {shown.layer_values:,}"
        console.print(f"[red]layer 0 on the emulated NPU: {wrong} values differ[/red]")
        return
    console.print(
        f"[green]layer 0 on the emulated NPU: all {shown.layer_values:,} values equal those of "
        f"device {shown.device}, bit for bit[/green]"
    )


def _projection_table(projections: list[Projection]) -> Table:
    kernel = projections[0].batched.kernel
    table = Table(
        title=f"projections of layer 0, int8; batched on {kernel}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("product\nM, K, N")
    for heading in ("", "launches", "MB in", "MB out", "modelled"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in projections:
        modelled = f"{one.sequential_s:,.1f} s"
        table.add_row(one.name, "sequential", *_counts(one.sequential), modelled)
        shape, modelled = "x".join(map(str, one.shape)), f"{one.batched_s * 1e3:.2f} ms"
        table.add_row(shape, "batched", *_counts(one.batched), modelled, end_section=True)
    return table


def _counts(counted: Counts | CallReport) -> tuple[str, str, str]:
    megabytes = counted.bytes_to_device / 1e6, counted.bytes_from_device / 1e6
    return f"{counted.launches:,}", f"{megabytes[0]:,.2f}", f"{megabytes[1]:,.2f}"
