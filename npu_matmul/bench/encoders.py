"""Whisper's encoder and the functions between its products: ours, and torch's in float32.

All encoders have the same seeded weights and the features of the package's recording. Libraries are
imported only by what makes them, in a process of that library alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.bench.accuracy import Accuracy, relative_error
from npu_matmul.bench.contenders import Ready
from npu_matmul.extras import MissingExtra
from npu_matmul.whisper.dimensions import SEED

PRECISIONS = ("int8", "bf16", "bf16x3")
OPENAI, TRANSFORMERS = "openai-whisper", "transformers"
ENCODERS = {"npu_matmul": PRECISIONS, "torch": (OPENAI, TRANSFORMERS)}  # by process
PACKAGES = {"torch": "torch", "whisper": OPENAI, "transformers": TRANSFORMERS}
LAYER_ERRORS = {  # about twice what tiny has, per layer, each squared
    **{"int8": 2e-2, "bf16": 5e-3, "bf16x3": 1e-5},
    **{OPENAI: 1e-6, TRANSFORMERS: 1e-6},
}
FUNCTION_ERROR, FUNCTION_ERROR_BF16 = 1e-6, 1e-2  # the second where operands are rounded to bf16
ROWS, COLUMNS, HEADS = 1500, 512, 8  # of the base encoder

Features = NDArray[np.float32]


def check_installed() -> None:
    """Raises :class:`MissingExtra` unless there is something to compare with."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingExtra(
            f"--encoders needs {' and '.join(missing)}: pip install 'npu-matmul[frameworks]'"
        )


def prepared(name: str, size: str) -> Ready:
    """The encoder of a library, or ours in the precision of that name."""
    from npu_matmul.whisper.dimensions import SIZES, random_tensors

    mel, tensors = speech_mel(size), random_tensors(SIZES[size], SEED)
    if name in PRECISIONS:
        from npu_matmul.whisper.model import AudioEncoder

        encoder = AudioEncoder(tensors, device="cpu", precision=name)
        return Ready(partial(encoder, mel), lambda: encoder(mel))
    module = _openai(size, tensors)
    if name == TRANSFORMERS:
        module = _transformers(size, module)
    work = partial(_torch_features, module, mel)
    return Ready(work, work)


def reference(size: str) -> NDArray[np.float64]:
    """What all of them approximate: openai-whisper's encoder in float64."""
    from torch import nn

    from npu_matmul.whisper.dimensions import SIZES, random_tensors

    module = _openai(size, random_tensors(SIZES[size], SEED)).double()
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):  # whisper's own casts to float32
            layer.__class__ = nn.LayerNorm
    return np.asarray(_torch_features(module, speech_mel(size).astype(np.float64)))


def accuracy(got: NDArray[Any], want: NDArray[np.float64], at_most: float) -> Accuracy:
    """The relative error, and the cosine of the angle between both."""
    wide = got.astype(np.float64)
    norms = np.linalg.norm(wide) * np.linalg.norm(want)
    return {**relative_error(wide, want, at_most), "cosine": float(np.vdot(wide, want) / norms)}


def encoder_bound(name: str, size: str) -> float:
    """The relative error of an encoder's features at most: those of its layers are independent."""
    from npu_matmul.whisper.dimensions import SIZES

    return LAYER_ERRORS[name] * math.sqrt(SIZES[size].n_audio_layer)


def speech_mel(size: str) -> Features:
    from npu_matmul.whisper.audio import pad_or_trim, speech_sample
    from npu_matmul.whisper.dimensions import SIZES
    from npu_matmul.whisper.mel import host_log_mel_spectrogram

    return host_log_mel_spectrogram(pad_or_trim(speech_sample()), SIZES[size].n_mels)


def functions(library: str) -> dict[str, tuple[Ready, NDArray[np.float64], float]]:
    """What is not a product with weights, by name; what each should be, in float64, and by how much
    it may differ.

    Both libraries do the same with memory. gelu and softmax work in place, on the input that NumPy
    has just copied there; layer_norm and attention make a new result.
    """
    random = np.random.default_rng(SEED)
    x = random.standard_normal((ROWS, COLUMNS), np.float32)
    weight, bias = random.standard_normal((2, COLUMNS), np.float32)
    qkv = random.standard_normal((ROWS, 3 * COLUMNS), np.float32)
    scores = random.standard_normal((ROWS, ROWS), np.float32)
    make = _our_functions if library == "npu_matmul" else _torch_functions
    wide = x.astype(np.float64)
    wanted = {
        f"gelu {ROWS}x{COLUMNS}": _gelu(wide + bias),
        f"layer_norm {ROWS}x{COLUMNS}": _layer_norm(wide) * weight + bias,
        f"softmax {ROWS}x{COLUMNS}": _softmax(wide),
        f"softmax {ROWS}x{ROWS}": _softmax(scores.astype(np.float64)),
        f"attention {HEADS}x{ROWS}x{COLUMNS // HEADS}": _attention(qkv.astype(np.float64)),
    }
    made = make(x, weight, bias, scores, qkv)
    return {
        name: (ready, wanted[name], _function_bound(library, name))
        for name, ready in zip(wanted, made, strict=True)
        if ready
    }


def _function_bound(library: str, name: str) -> float:
    rounded = library == "npu_matmul" and name.startswith("attention")
    return FUNCTION_ERROR_BF16 if rounded else FUNCTION_ERROR


def _our_functions(
    x: Features, weight: Features, bias: Features, scores: Features, qkv: Features
) -> list[Ready | None]:
    from npu_matmul.host.attention import attention, usable
    from npu_matmul.whisper import elementwise

    query, key, value = np.split(qkv, 3, axis=1)

    def mix() -> Features:
        mixed = np.empty_like(x)
        attention(query, key, value, mixed, ROWS, COLUMNS // HEADS)
        return mixed

    return [
        _in_place(x, lambda y: elementwise.gelu(y, bias)),
        _anew(partial(elementwise.layer_norm, x, weight, bias)),
        _in_place(x, elementwise.softmax),
        _in_place(scores, elementwise.softmax),
        _anew(mix) if usable() else None,
    ]


def _torch_functions(
    x: Features, weight: Features, bias: Features, scores: Features, qkv: Features
) -> list[Ready | None]:
    """Without the bias of gelu, which torch adds elsewhere."""
    import torch
    from torch.nn import functional

    t, w, b = (torch.from_numpy(array) for array in (x, weight, bias))
    heads = torch.from_numpy(qkv).view(ROWS, 3, HEADS, -1).permute(1, 2, 0, 3).unsqueeze(1)
    mix = partial(functional.scaled_dot_product_attention, *heads)

    def in_place(source: Features, work: Callable[[Any], Any]) -> Ready:
        return _in_place(source, lambda y: work(torch.from_numpy(y)))

    return [
        in_place(x + bias, torch.ops.aten.gelu_),
        _anew(lambda: functional.layer_norm(t, w.shape, w, b)),
        in_place(x, lambda y: torch.softmax(y, -1, out=y)),
        in_place(scores, lambda y: torch.softmax(y, -1, out=y)),
        Ready(mix, lambda: mix()[0].transpose(0, 1).reshape(ROWS, -1).numpy()),
    ]


def _in_place(source: Features, work: Callable[[Features], Any]) -> Ready:
    memory = np.empty_like(source)

    def copy_and_work() -> None:
        np.copyto(memory, source)
        work(memory)

    return Ready(copy_and_work, lambda: memory)


def _anew(work: Callable[[], Any]) -> Ready:
    return Ready(work, lambda: np.asarray(work()))


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    erf = np.array([math.erf(value) for value in (x / math.sqrt(2)).ravel().tolist()])
    return np.asarray(x / 2 * (1 + erf.reshape(x.shape)))


def _layer_norm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return np.asarray((x - x.mean(axis=1, keepdims=True)) / deviation)


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _attention(qkv: NDArray[np.float64]) -> NDArray[np.float64]:
    q, k, v = qkv.reshape(ROWS, 3, HEADS, -1).transpose(1, 2, 0, 3)
    weights = _softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2]))
    return np.asarray((weights @ v).transpose(1, 0, 2).reshape(ROWS, -1))


def _torch_features(module: Any, mel: NDArray[Any]) -> NDArray[Any]:
    import torch

    with torch.inference_mode():
        result = module(torch.from_numpy(mel)[None])
    hidden = result if isinstance(result, torch.Tensor) else result.last_hidden_state
    return np.asarray(hidden[0])


def _openai(size: str, tensors: dict[str, Any]) -> Any:
    import torch
    from whisper.model import AudioEncoder

    from npu_matmul.whisper.dimensions import SIZES

    module = AudioEncoder(*vars(SIZES[size]).values()).eval()
    module.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()})
    return module


def _transformers(size: str, openai: Any) -> Any:
    """The same weights in transformers' encoder."""
    from importlib import import_module

    from npu_matmul.whisper.checkpoint import CONFIGURED, openai_name
    from npu_matmul.whisper.dimensions import MLP_FACTOR, SIZES

    whisper = import_module("transformers.models.whisper.modeling_whisper")
    dims = SIZES[size]
    sizes = {CONFIGURED[name]: size for name, size in vars(dims).items()}
    wide = MLP_FACTOR * dims.n_audio_state
    module = whisper.WhisperEncoder(whisper.WhisperConfig(**sizes, encoder_ffn_dim=wide)).eval()
    state = {f"encoder.{name}": tensor for name, tensor in openai.state_dict().items()}
    module.load_state_dict({name: state[str(openai_name(name))] for name in module.state_dict()})
    return module
