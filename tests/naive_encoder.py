"""Whisper's audio encoder straight from its definition, in float64: the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Wide = NDArray[np.float64]


def naive_encoder(tensors: Mapping[str, NDArray[Any]], mel: ArrayLike, heads: int) -> Wide:
    """Features (n_audio_ctx, n_audio_state) of one window (n_mels, frames)."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = gelu(convolve(np.asarray(mel, np.float64), w["conv1.weight"], w["conv1.bias"], 1))
    x = gelu(convolve(x, w["conv2.weight"], w["conv2.bias"], 2)).T + w["positional_embedding"]
    layer = 0
    while f"blocks.{layer}.attn_ln.weight" in w:
        x = block(w, f"blocks.{layer}", x, heads)
        layer += 1
    return layer_norm(w, "ln_post", x)


def block(w: Mapping[str, Wide], name: str, x: Wide, heads: int) -> Wide:
    h = layer_norm(w, f"{name}.attn_ln", x)
    q, k, v = (linear(w, f"{name}.attn.{part}", h) for part in ("query", "key", "value"))
    mixed = []
    for i in range(heads):
        head = slice(i * q.shape[1] // heads, (i + 1) * q.shape[1] // heads)
        scores = np.exp(q[:, head] @ k[:, head].T / math.sqrt(q.shape[1] // heads))
        mixed.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, head])
    x = x + linear(w, f"{name}.attn.out", np.concatenate(mixed, axis=1))
    hidden = gelu(linear(w, f"{name}.mlp.0", layer_norm(w, f"{name}.mlp_ln", x)))
    return x + linear(w, f"{name}.mlp.2", hidden)


def linear(w: Mapping[str, Wide], name: str, x: Wide) -> Wide:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.zeros(1))


def layer_norm(w: Mapping[str, Wide], name: str, x: Wide) -> Wide:
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Wide) -> Wide:
    erf = np.array([math.erf(value / math.sqrt(2)) for value in x.ravel().tolist()])
    return x / 2 * (1 + erf.reshape(x.shape))


def convolve(x: Wide, weight: Wide, bias: Wide, stride: int) -> Wide:
    """(in, frames) to (out, frames / stride): every output value on its own."""
    padded = np.pad(x, ((0, 0), (1, 1)))
    frames = range(0, x.shape[1], stride)
    columns = [(weight * padded[:, t : t + 3]).sum(axis=(1, 2)) + bias for t in frames]
    return np.stack(columns, axis=1)


def relative_error(got: ArrayLike, want: ArrayLike) -> float:
    """Frobenius norm of the difference, over that of what is wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def cosine(got: ArrayLike, want: ArrayLike) -> float:
    """Of the angle between all values of one and all of the other."""
    a, b = np.asarray(got, np.float64).ravel(), np.asarray(want, np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
