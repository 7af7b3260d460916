"""Whisper's audio encoder in NumPy: every product with weights goes through ``npu_matmul``.

Comes in: log-mel features (n_mels, 3000) of 30 s. Goes out: float32 features (1500, n_audio_state).
Classes and parameters have openai-whisper's names. Weights are packed once, when the encoder is
made, and stay on the device; a call moves activations only.

Activations are matrices (rows, columns) of float32, C-contiguous: a row per frame, the frames of
one window after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npu_matmul.device import Device, open_device
from npu_matmul.host import threads
from npu_matmul.host.attention import attention as attend_in_bf16
from npu_matmul.host.attention import usable
from npu_matmul.host.scratch import Room, lent
from npu_matmul.matmul import pack_b
from npu_matmul.whisper import elementwise, ledger
from npu_matmul.whisper.dimensions import (
    HEAD_WIDTH,
    STRIDE,
    Dimensions,
    random_tensors,
    read_dimensions,
)
from npu_matmul.whisper.elementwise import Floats
from npu_matmul.whisper.mel import MIN_SAMPLES, LogMel
from npu_matmul.whisper.placement import (
    DEFAULT_PRECISION,
    AttentionRule,
    PrecisionChoice,
    attention_places,
    attention_rule,
    precisions,
)

Tensors = Mapping[str, NDArray[Any]]


class Linear:
    """Rows times weight.T: ``weight`` is (out, in), packed and resident on the device.

    The bias is not added here but by what follows, which reads the result anyway. With ``room`` the
    result lies there, by the ``name``.
    """

    def __init__(
        self, name: str, weight: NDArray[Any], bias: NDArray[Any], device: Device, precision: str
    ) -> None:
        self.name = name
        self.bias: Floats = np.ascontiguousarray(bias, np.float32)
        matrix = np.asarray(weight, np.float32).T
        self.weight = pack_b(matrix, device=device, precision=precision)

    def __call__(self, rows: Floats, room: Room | None = None, name: str = "") -> Floats:
        out = None if room is None else room.array(name, (len(rows), self.bias.size))
        result: Floats = ledger.product(self.name, rows, self.weight, out)
        return result


class Conv1d(Linear):
    """A convolution over three frames, zeros beyond both ends, as one product.

    A row of its left operand is three neighbouring frames: a view of the padded frames, in which
    rows overlap.
    """

    def __init__(
        self,
        name: str,
        weight: NDArray[Any],  # (out, in, 3)
        bias: NDArray[Any],
        device: Device,
        precision: str,
        stride: int = 1,
    ) -> None:
        outputs, _, self.width = weight.shape
        self.stride = stride
        flat = weight.transpose(0, 2, 1).reshape(outputs, -1)
        super().__init__(name, flat, bias, device, precision)

    def __call__(self, rows: Floats, room: Room | None = None, name: str = "") -> Floats:
        frames, channels = rows.shape
        reach = self.width // 2
        with lent("convolution") as own:
            padded = own.array("padded", (frames + 2 * reach, channels))
            padded[:reach] = padded[reach + frames :] = 0
            padded[reach : reach + frames] = rows
            windows = np.lib.stride_tricks.sliding_window_view(
                padded.reshape(-1), self.width * channels
            )
            return super().__call__(windows[:: self.stride * channels], room, name)


class LayerNorm:
    """Rows of mean 0 and deviation 1, scaled and shifted by column."""

    def __init__(self, tensors: Tensors, name: str) -> None:
        self.weight: Floats = np.ascontiguousarray(tensors[f"{name}.weight"], np.float32)
        self.bias: Floats = np.ascontiguousarray(tensors[f"{name}.bias"], np.float32)

    def __call__(self, x: Floats, room: Room | None = None) -> Floats:
        out = None if room is None else room.array("normal", x.shape)
        with ledger.stage("layer_norm"):
            return elementwise.layer_norm(x, self.weight, self.bias, out)


class MultiHeadAttention:
    """Self-attention; queries, keys and values are one product where their precisions are one."""

    def __init__(
        self, tensors: Tensors, name: str, device: Device, how: Mapping[str, str], place: str
    ) -> None:
        self.name, self.device, self.how, self.place = name, device, how, place
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        self.qkv = [
            _linear(tensors, tuple(same), device, precision)
            for precision, same in groupby(parts, how.__getitem__)
        ]
        self.out = _linear(tensors, (f"{name}.out",), device, how[f"{name}.out"])

    def __call__(self, x: Floats, tokens: int, room: Room) -> Floats:
        """``x``: rows of windows of ``tokens`` each. Returns the rows before ``out``'s bias, which
        lie in ``room``."""
        projected = [linear(x, room, f"projected {i}") for i, linear in enumerate(self.qkv)]
        with ledger.stage("bias"):
            for rows, linear in zip(projected, self.qkv, strict=True):
                elementwise.add_bias(rows, linear.bias)
        qkv = projected[0] if len(projected) == 1 else np.concatenate(projected, axis=1)
        mixed = room.array("mixed", x.shape)
        width = x.shape[1]
        query, key, value = (qkv[:, left : left + width] for left in (0, width, 2 * width))
        self._attend(query, key, value, mixed, tokens, room)
        return self.out(mixed, room, "added")

    def _attend(
        self, query: Floats, key: Floats, value: Floats, mixed: Floats, tokens: int, room: Room
    ) -> None:
        if self.place == "host" and self._in_bf16():
            with ledger.stage("attention"):
                attend_in_bf16(query, key, value, mixed, tokens, HEAD_WIDTH)
            ledger.host_products("host bf16", 2 * mixed.size // (tokens * HEAD_WIDTH))
            return
        scores = room.array("scores", (tokens, tokens))  # of one head at a time
        multiply = self._on_host if self.place == "host" else self._on_device
        for start in range(0, len(mixed), tokens):
            window = slice(start, start + tokens)
            for left in range(0, mixed.shape[1], HEAD_WIDTH):
                head = window, slice(left, left + HEAD_WIDTH)
                multiply("qk", query[head], key[head].T, scores)
                with ledger.stage("softmax"):
                    elementwise.softmax(scores, scale=HEAD_WIDTH**-0.5)
                multiply("wv", scores, value[head], mixed[head])

    def _in_bf16(self) -> bool:
        """Whether the host computes both products in bf16: as asked, and where it gains by it."""
        return usable() and {self.how[f"{self.name}.{part}"] for part in ("qk", "wv")} == {"bf16"}

    @staticmethod
    def _on_host(part: str, a: Floats, b: Floats, out: Floats) -> None:
        with ledger.stage(f"attn.{part}"):
            np.matmul(a, b, out=out)
        ledger.host_products("host float32", 1)

    def _on_device(self, part: str, a: Floats, b: Floats, out: Floats) -> None:
        name = f"{self.name}.{part}"
        ledger.product(name, a, b, out=out, precision=self.how[name], device=self.device)


class ResidualAttentionBlock:
    """Attention and a two-layer perceptron, each on normalised rows, each added to what came in."""

    def __init__(
        self, tensors: Tensors, name: str, device: Device, how: Mapping[str, str], place: str
    ) -> None:
        self.attn = MultiHeadAttention(tensors, f"{name}.attn", device, how, place)
        self.attn_ln = LayerNorm(tensors, f"{name}.attn_ln")
        self.mlp = [
            _linear(tensors, (part,), device, how[part])
            for part in (f"{name}.mlp.0", f"{name}.mlp.2")
        ]
        self.mlp_ln = LayerNorm(tensors, f"{name}.mlp_ln")

    def __call__(self, x: Floats, tokens: int, room: Room) -> Floats:
        """``x`` itself, in place; what lies between is in ``room``."""
        mixed = self.attn(self.attn_ln(x, room), tokens, room)
        with ledger.stage("residual"):
            elementwise.add(x, mixed, self.attn.out.bias)
        widen, narrow = self.mlp
        hidden = widen(self.mlp_ln(x, room), room, "hidden")
        with ledger.stage("gelu"):
            elementwise.gelu(hidden, widen.bias)
        narrowed = narrow(hidden, room, "added")
        with ledger.stage("residual"):
            return elementwise.add(x, narrowed, narrow.bias)


class AudioEncoder:
    """The encoder of a Whisper model; every size from tiny to large-v3, read off the weights.

    Args:
        tensors: arrays by openai-whisper's parameter names, as :func:`load_encoder` reads them.
        device: a name for ``open_device``, or a device; default ``$NPU_MATMUL_DEVICE``, or "auto".
        precision: "bf16", "bf16x3" or "int8" for every projection, or a mapping of patterns of
            their names to precisions (:func:`npu_matmul.whisper.placement.precisions`).
        attention: where the products inside attention are computed: "host" (in bf16 where that is
            their precision and the CPU has instructions for it, else np.matmul in float32),
            "device" (``npu_matmul``), or "auto": on the device in layers where one of them is
            int8, which the host has not; in the others as ``rule`` says.
        rule: ``rule(device, tokens, head_width, precision)`` gives "host" or "device" for "auto";
            ``precision`` is "bf16", or "bf16x3" where one of a layer's two products is. It is
            asked once for each. ``places`` has the answers by layer.

    Raises:
        CheckpointError: a tensor is missing or has another shape; the message names it.
        ValueError: an unknown precision, pattern, device or place; int8 inside attention on the
            host.

    >>> from npu_matmul.whisper.dimensions import Dimensions, random_tensors
    >>> sizes = Dimensions(8, n_audio_ctx=6, n_audio_state=64, n_audio_head=1, n_audio_layer=1)
    >>> encoder = AudioEncoder(random_tensors(sizes), device="cpu", precision="bf16x3")
    >>> encoder(np.zeros((8, 12), np.float32)).shape
    (6, 64)
    """

    def __init__(
        self,
        tensors: Tensors,
        *,
        device: str | Device | None = None,
        precision: PrecisionChoice = DEFAULT_PRECISION,
        attention: str = "auto",
        rule: AttentionRule = attention_rule,
        source: str = "tensors",
    ) -> None:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.dims: Dimensions = read_dimensions(shapes, source)
        self.device = device if isinstance(device, Device) else open_device(device or "auto")
        self.precisions = precisions(precision, product_names(self.dims))
        ask = partial(rule, self.device, self.dims.n_audio_ctx, HEAD_WIDTH)
        self.places = attention_places(self.precisions, attention, ask)
        how = self.precisions
        self.conv1 = Conv1d("conv1", *_pair(tensors, "conv1"), self.device, how["conv1"])
        self.conv2 = Conv1d("conv2", *_pair(tensors, "conv2"), self.device, how["conv2"], STRIDE)
        self.positional_embedding: Floats = np.ascontiguousarray(
            tensors["positional_embedding"], np.float32
        )
        self.blocks = [
            ResidualAttentionBlock(tensors, f"blocks.{layer}", self.device, how, place)
            for layer, place in enumerate(self.places)
        ]
        self.ln_post = LayerNorm(tensors, "ln_post")

    def __call__(
        self, mel: ArrayLike, *, on_layer: Callable[[int], None] = lambda done: None
    ) -> NDArray[np.float32]:
        """Features (n_audio_ctx, n_audio_state) of log-mel features (n_mels, frames), float32; of a
        batch (batch, n_mels, frames) a batch. Its windows share each product of the blocks.

        ``on_layer`` is told how many layers are done.

        Raises:
            ValueError: another shape than the encoder's; NaN or infinity in int8.
        """
        mel = np.asarray(mel, np.float32)
        batch = mel[np.newaxis] if mel.ndim == 2 else mel
        if batch.shape[1:] != (self.dims.n_mels, self.dims.frames):
            raise ValueError(
                f"mel has shape {mel.shape}; this encoder takes ({self.dims.n_mels}, "
                f"{self.dims.frames}), or a batch of that: pad or cut the audio to 30 s first, "
                "with npu_matmul.whisper.pad_or_trim"
            )
        if not len(batch):
            return np.empty((0, self.dims.n_audio_ctx, self.dims.n_audio_state), np.float32)
        windows = [self.front_end(window) for window in batch]
        x = windows[0] if len(windows) == 1 else np.concatenate(windows)
        with lent("encoder") as room:
            for done, block in enumerate(self.blocks, start=1):
                x = block(x, self.dims.n_audio_ctx, room)
                on_layer(done)
        return self.ln_post(x).reshape(*mel.shape[:-2], -1, self.dims.n_audio_state)

    def front_end(self, mel: NDArray[np.float32]) -> Floats:
        """What the first block is given for one window: rows (n_audio_ctx, n_audio_state)."""
        with lent("front end") as room:
            frames = self._gelu(self.conv1(mel.T, room, "frames"), self.conv1)
            rows = self._gelu(self.conv2(frames), self.conv2)
        with ledger.stage("residual"):
            rows += self.positional_embedding
        return rows

    @staticmethod
    def _gelu(rows: Floats, after: Linear) -> Floats:
        with ledger.stage("gelu"):
            return elementwise.gelu(rows, after.bias)

    def __repr__(self) -> str:
        where = " and ".join(sorted(set(self.places)))
        return f"<AudioEncoder {self.dims} on {self.device.name!r}, attention on {where}>"


def compile_all(encoder: AudioEncoder, log_mel: LogMel) -> None:
    """Compile what the host computes for both, or load from the disk what was compiled before: the
    first use would otherwise hold that time.

    The features of a few samples are made, and small encoders run on the same device: one for each
    layer that differs from the others in its precisions or its place of attention.
    """
    threads.start()
    log_mel(np.zeros(MIN_SAMPLES, np.float32))
    small = Dimensions(2, n_audio_ctx=2, n_audio_state=HEAD_WIDTH, n_audio_head=1, n_audio_layer=1)
    tensors, how = random_tensors(small), encoder.precisions
    kinds = set()
    for layer, place in enumerate(encoder.places):
        theirs = [name.replace(".0.", f".{layer}.") for name in product_names(small)]
        kinds.add(
            (place, tuple(zip(product_names(small), map(how.__getitem__, theirs), strict=True)))
        )
    for place, precision in kinds:
        alike = AudioEncoder(tensors, device=encoder.device, precision=precision, attention=place)
        alike(np.zeros((small.n_mels, small.frames)))


def product_names(dims: Dimensions) -> list[str]:
    """The names that a precision can be chosen for, in the order of the encoder."""
    attention = [f"attn.{part}" for part in ("query", "key", "value", "qk", "wv", "out")]
    parts = [*attention, "mlp.0", "mlp.2"]
    blocks = [f"blocks.{layer}.{part}" for layer in range(dims.n_audio_layer) for part in parts]
    return ["conv1", "conv2", *blocks]


def _linear(tensors: Tensors, names: tuple[str, ...], device: Device, precision: str) -> Linear:
    """One product for one projection, or for several of the same rows."""
    pairs = [_pair(tensors, name) for name in names]
    weight = np.concatenate([weight for weight, _ in pairs])
    bias = np.concatenate([bias for _, bias in pairs])
    stem, _, last = names[0].rpartition(".")
    if len(names) > 1:
        parts = [name.rpartition(".")[2] for name in names]
        last = "qkv" if len(parts) == 3 else "+".join(parts)
    return Linear(f"{stem}.{last}", weight, bias, device, precision)


def _pair(tensors: Tensors, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias; zeros where a projection has no bias."""
    weight = tensors[f"{name}.weight"]
    return weight, tensors.get(f"{name}.bias", np.zeros(weight.shape[0], np.float32))
