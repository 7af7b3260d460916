"""Whisper's encoder: seconds and accuracy on one row, beside those of torch in float32.

Each library's encoder has the same seeded weights and the recording's features, and runs in a
process of its own, one after the other in turns, as thread pools of several libraries in one
process slow each other down. The reference of all errors is openai-whisper in float64. Needs torch:
run it with the Python of ``.venv-frameworks`` (``make test-frameworks`` makes it).

The second table is the rule for attention: one head's two products where ``attention`` puts them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

TORCH = ("openai-whisper", "transformers")
PRECISIONS = ("int8", "bf16", "bf16x3")
TARGETS = {"int8": 3.0, "bf16": 2.0}  # times as fast as torch in float32, base size, two cores
SEED = 2024
TOKENS = 1500
HEAD_WIDTH = 64
Features = NDArray[np.float32]


@click.group(invoke_without_command=True)
@click.option("--sizes", default="tiny,base", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Each encoder runs in each, in turn.")
@click.option("--json", "path", type=click.Path(path_type=Path), default="bench-encoder.json")
@click.pass_context
def main(context: click.Context, sizes: str, device: str, rounds: int, path: Path) -> None:
    """Encoder seconds of npu_matmul on DEVICE against torch float32 of both libraries."""
    if context.invoked_subcommand is not None:
        return
    console = Console()
    rows = []
    for size in sizes.split(","):
        found = measure(size, device, rounds)
        console.print(encoder_table(size, found))
        rows += found
    attention = attention_products(device)
    console.print(attention_table(attention))
    functions = {
        threads: {library: run_functions(library, threads) for library in ("ours", "torch")}
        for threads in ("1", str(os.cpu_count()))
    }
    for threads, found in functions.items():
        console.print(function_table(threads, found))
    results = {"encoders": rows, "attention": attention, "functions": functions}
    path.write_text(json.dumps(results, indent=2) + "\n")


@main.command()
@click.argument("library")
@click.argument("size")
@click.argument("device")
@click.argument("folder", type=click.Path(path_type=Path))
def worker(library: str, size: str, device: str, folder: Path) -> None:
    """One encoder in this process: measures once for every line of standard input."""
    mel = np.load(folder / "mel.npy")
    encode = make(library, size, device)
    np.save(folder / f"{library}.npy", encode(mel))
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        encode(mel)
        print(time.perf_counter() - start, flush=True)


@main.command()
@click.argument("library", type=click.Choice(["ours", "torch"]))
def functions(library: str) -> None:
    """Median microseconds of what is not a product, as JSON: of one thread, CPU time, which other
    processes do not disturb; of more, wall time."""
    one = os.environ.get("OMP_NUM_THREADS") == "1"
    clock = time.thread_time if one else time.perf_counter
    found = {
        f"{name} {shape[0]} x {shape[1]}": median_ms(function, *operands, count=101, clock=clock)
        * 1e3
        for shape in ((TOKENS, 512), (TOKENS, TOKENS))
        for name, function, operands in functions_of(library, shape)
        if name == "softmax" or shape[1] == 512
    }
    print(json.dumps(found))


def functions_of(
    library: str, shape: tuple[int, int]
) -> list[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    random = np.random.default_rng(SEED)
    x = random.standard_normal(shape, np.float32)
    weight, bias = random.standard_normal((2, shape[1]), np.float32)
    if library == "ours":
        from npu_matmul.whisper import elementwise

        return [  # gelu and softmax work in place: on what they made, after the first time
            ("gelu", elementwise.gelu, (x.copy(), np.zeros_like(bias))),
            ("layer_norm", elementwise.layer_norm, (x, weight, bias)),
            ("softmax", elementwise.softmax, (x.copy(),)),
        ]
    import torch
    from torch.nn import functional

    t, w, b = (torch.from_numpy(array) for array in (x, weight, bias))
    return [
        ("gelu", functional.gelu, (t,)),
        ("layer_norm", lambda t, w, b: functional.layer_norm(t, w.shape, w, b), (t, w, b)),
        ("softmax", lambda t: functional.softmax(t, -1), (t,)),
    ]


def run_functions(library: str, threads: str) -> dict[str, float]:
    command = [sys.executable, __file__, "functions", library]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "NPU_MATMUL_THREADS": threads}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(size: str, device: str, rounds: int) -> list[dict[str, Any]]:
    """A row per encoder: median and least seconds of one window of 30 s, error, cosine."""
    names = [*TORCH, *PRECISIONS]
    with TemporaryDirectory() as folder:
        np.save(Path(folder) / "mel.npy", speech_mel())
        started = {name: start_worker(name, size, device, folder) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, process in started.items():
                seconds[name].append(float(ask(process)))
        for process in started.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
        want = reference(size, np.load(Path(folder) / "mel.npy"))
        features = {name: np.load(Path(folder) / f"{name}.npy") for name in names}
    torch_s = min(statistics.median(seconds[name]) for name in TORCH)
    return [
        {
            "size": size,
            "encoder": name if name in TORCH else f"ours, {name}",
            "device": "torch" if name in TORCH else device,
            "precision": "float32" if name in TORCH else name,
            "median_s": statistics.median(seconds[name]),
            "least_s": min(seconds[name]),
            "times_torch": torch_s / statistics.median(seconds[name]),
            "relative_error": float(np.linalg.norm(features[name] - want) / np.linalg.norm(want)),
            "cosine": cosine(features[name], want),
        }
        for name in names
    ]


def start_worker(name: str, size: str, device: str, folder: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "worker", name, size, device, folder]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n", f"{name} did not start"
    return process


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def make(library: str, size: str, device: str) -> Callable[[Features], Features]:
    """``encode(mel)`` of a library, or of npu_matmul in a precision; all of the same weights."""
    from npu_matmul.whisper.dimensions import SIZES, random_tensors

    tensors = random_tensors(SIZES[size], SEED)
    if library in PRECISIONS:
        from npu_matmul.whisper.model import AudioEncoder

        return AudioEncoder(tensors, device=device, precision=library)
    import torch

    module = openai_encoder(size, tensors)
    if library == "transformers":
        module = transformers_encoder(size, module)

    def encode(mel: Features) -> Features:
        with torch.inference_mode():
            result = module(torch.from_numpy(mel)[None])
        hidden = result if isinstance(result, torch.Tensor) else result.last_hidden_state
        return np.asarray(hidden[0])

    return encode


def openai_encoder(size: str, tensors: dict[str, Any]) -> Any:
    import torch
    from whisper.model import AudioEncoder

    from npu_matmul.whisper.dimensions import SIZES

    module = AudioEncoder(*vars(SIZES[size]).values()).eval()
    module.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()})
    return module


def transformers_encoder(size: str, openai: Any) -> Any:
    """The same weights in transformers' encoder."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from npu_matmul.whisper.checkpoint import openai_name
    from npu_matmul.whisper.dimensions import SIZES

    dims = SIZES[size]
    configuration = WhisperConfig(
        d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        num_mel_bins=dims.n_mels,
    )
    module = WhisperEncoder(configuration).eval()
    state = {f"encoder.{name}": tensor for name, tensor in openai.state_dict().items()}
    module.load_state_dict({name: state[str(openai_name(name))] for name in module.state_dict()})
    return module


def reference(size: str, mel: Features) -> NDArray[np.float64]:
    """openai-whisper's features in float64."""
    import torch
    from torch import nn

    from npu_matmul.whisper.dimensions import SIZES, random_tensors

    module = openai_encoder(size, random_tensors(SIZES[size], SEED)).double()
    for layer in module.modules():  # its LayerNorm casts to float32
        if isinstance(layer, nn.LayerNorm):
            layer.__class__ = nn.LayerNorm
    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(mel).double()[None])[0])


def speech_mel() -> Features:
    from npu_matmul.whisper.audio import pad_or_trim, speech_sample
    from npu_matmul.whisper.mel import host_log_mel_spectrogram

    return host_log_mel_spectrogram(pad_or_trim(speech_sample()), 80)


def cosine(got: NDArray[Any], want: NDArray[Any]) -> float:
    a, b = got.astype(np.float64).ravel(), want.ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def attention_products(device: str) -> list[dict[str, Any]]:
    """Median milliseconds of one head's products on the host and on the device, by precision."""
    from npu_matmul import npu_matmul

    random = np.random.default_rng(SEED)
    query, key, value = random.standard_normal((3, TOKENS, HEAD_WIDTH), np.float32)
    weights = random.random((TOKENS, TOKENS), np.float32)
    places: dict[str, Callable[[Any, Any], Any]] = {"host, float32": np.matmul}
    for precision in PRECISIONS:
        places[f"{device}, {precision}"] = lambda a, b, precision=precision: npu_matmul(
            a, b, precision=precision, device=device
        )
    return [
        {
            "place": place,
            "qk_ms": median_ms(multiply, query, key.T),
            "wv_ms": median_ms(multiply, weights, value),
        }
        for place, multiply in places.items()
    ]


def median_ms(
    function: Callable[..., Any],
    *operands: Any,
    count: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    function(*operands)
    spent = []
    for _ in range(count):
        start = clock()
        function(*operands)
        spent.append(clock() - start)
    return statistics.median(spent) * 1e3


def encoder_table(size: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title=f"{size} encoder, 30 s; ours on {rows[-1]['device']}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("encoder")
    for heading in ("median s", "least s", "x torch", "target", "rel. error", "cosine"):
        table.add_column(heading, justify="right")
    for row in rows:
        target = TARGETS.get(row["precision"]) if size == "base" else None
        table.add_row(
            row["encoder"],
            f"{row['median_s']:.3f}",
            f"{row['least_s']:.3f}",
            f"{row['times_torch']:.2f}",
            "" if target is None else f"{target:.0f}",
            f"{row['relative_error']:.1e}",
            f"{row['cosine']:.6f}",
        )
    return table


def attention_table(rows: list[dict[str, Any]]) -> Table:
    title = f"products of one head, {TOKENS} x {HEAD_WIDTH}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("place")
    for heading in ("qk, ms", "wv, ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["place"], f"{row['qk_ms']:.2f}", f"{row['wv_ms']:.2f}")
    return table


def function_table(threads: str, found: dict[str, dict[str, float]]) -> Table:
    kind = "one thread, CPU time" if threads == "1" else f"{threads} threads, wall time"
    title = f"what is not a product: {kind}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("function")
    for heading in ("ours, us", "torch, us", "x torch"):
        table.add_column(heading, justify="right")
    for name, ours in found["ours"].items():
        torch = found["torch"][name]
        table.add_row(name, f"{ours:.0f}", f"{torch:.0f}", f"{torch / ours:.2f}")
    return table


if __name__ == "__main__":
    main()
