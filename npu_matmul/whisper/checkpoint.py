"""Checkpoints of Whisper models: encoder tensors under openai-whisper's names.

========================= ==================================================== ==============
path                      is                                                   needs
========================= ==================================================== ==============
directory                 of Hugging Face: config.json and safetensors files   safetensors
file ending .safetensors  the same tensors, without the configuration          safetensors
file ending .pt           of openai-whisper, read as tensors only, never code  torch
========================= ==================================================== ==============

Nothing is downloaded. ``safetensors`` comes with the extra: ``pip install 'npu-matmul[whisper]'``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npu_matmul.whisper.dimensions import (
    POSITIONS,
    CheckpointError,
    read_dimensions,
    sinusoids,
)
from npu_matmul.whisper.model import AudioEncoder

# Hugging Face's names of modules, within encoder and decoder, and openai-whisper's.
MODULES = {
    r"layers\.": "blocks.",
    r"self_attn_layer_norm\.": "attn_ln.",
    r"encoder_attn_layer_norm\.": "cross_attn_ln.",
    r"final_layer_norm\.": "mlp_ln.",
    r"self_attn\.": "attn.",
    r"encoder_attn\.": "cross_attn.",
    r"\.q_proj\.": ".query.",
    r"\.k_proj\.": ".key.",
    r"\.v_proj\.": ".value.",
    r"\.out_proj\.": ".out.",
    r"\.fc1\.": ".mlp.0.",
    r"\.fc2\.": ".mlp.2.",
    r"embed_positions\.weight$": "positional_embedding",
    r"embed_tokens\.": "token_embedding.",
}
# The last LayerNorm and, in the decoder, the positions have other names there.
ENCODER_MODULES = {**MODULES, r"^layer_norm\.": "ln_post."}
DECODER_MODULES = {**MODULES, r"^layer_norm\.": "ln."}

# What config.json calls the sizes.
CONFIGURED = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
# Element types that can be read, as safetensors and as torch call them.
FLOATS = ("F16", "F32", "F64", "BF16", "float16", "float32", "float64", "bfloat16")
HOW_TO_GET = (
    "give a Hugging Face directory (hf download openai/whisper-base --local-dir whisper-base) "
    "or an openai-whisper .pt file; nothing is downloaded here"
)

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and sizes by openai-whisper's names. ``sizes`` are those that a file gives itself:
    where it says so (for messages), and what it says."""

    source: str
    tensors: Tensors
    sizes: Mapping[str, tuple[str, Any]]

    def encoder(self) -> Tensors:
        """The encoder's tensors, float32, each checked; the positions computed where they are not
        stored.

        Raises:
            CheckpointError: a tensor is missing, of a wrong shape or not finite; names it.
        """
        tensors = self.part("encoder.")
        second = tensors.get("conv2.weight")
        if "positional_embedding" not in tensors and second is not None and second.ndim == 3:
            tensors["positional_embedding"] = self._positions(second.shape[0])
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.check_sizes(vars(read_dimensions(shapes, self.source)))
        return tensors

    def part(self, prefix: str) -> Tensors:
        """Tensors whose names begin with ``prefix``, which is left out: float32, each finite."""
        part: Tensors = {}
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                with np.errstate(over="ignore"):  # is refused with the next line
                    part[name.removeprefix(prefix)] = found = np.asarray(tensor, np.float32)
                if not np.isfinite(found).all():
                    raise CheckpointError(f"{self.source}: tensor {name!r} holds NaN or infinity")
        return part

    def check_sizes(self, found: Mapping[str, int]) -> None:
        """Hold the sizes that tensors have against those that the file gives itself."""
        for name, has in found.items():
            where, said = self.sizes.get(name, ("", has))
            if said != has:
                raise CheckpointError(
                    f"{where} is {said!r}, the tensors have {has}: they are of another model"
                )

    def _positions(self, states: int) -> NDArray[np.float32]:
        try:
            return sinusoids(POSITIONS, states)
        except ValueError as error:
            raise CheckpointError(
                f"{self.source}: tensor 'conv2.weight' has {states} outputs ({error})"
            ) from error


def load_encoder(path: str | os.PathLike[str], **options: Any) -> AudioEncoder:
    """The audio encoder of a checkpoint; ``options`` are those of :class:`AudioEncoder`.

    Raises:
        CheckpointError: no checkpoint, truncated, or a tensor is missing or of a wrong shape.
        ModuleNotFoundError: what the file needs is not installed; the message says how to.
    """
    return AudioEncoder(load_tensors(path), source=os.fspath(path), **options)


def load_tensors(path: str | os.PathLike[str]) -> Tensors:
    """The encoder's tensors by openai-whisper's names, float32, each checked."""
    return read_checkpoint(path, "encoder.").encoder()


def read_checkpoint(path: str | os.PathLike[str], prefix: str = "") -> Checkpoint:
    """A checkpoint's tensors whose openai-whisper names begin with ``prefix``; the others are not
    read. Names begin with ``encoder.`` or ``decoder.``."""
    place = Path(path)
    if place.is_dir():
        return _read_directory(place, prefix)
    if not place.is_file():
        raise CheckpointError(f"{path}: there is no such file or directory; {HOW_TO_GET}")
    if place.suffix == ".safetensors":
        return Checkpoint(os.fspath(path), _read_safetensors(place, prefix), {})
    if place.suffix == ".pt":
        return _read_pt(place, prefix)
    raise CheckpointError(
        f"{path}: a file that ends in .pt or .safetensors is needed; {HOW_TO_GET}"
    )


def openai_name(name: str) -> str | None:
    """openai-whisper's name of one of Hugging Face's tensors; None for one that is stored twice.

    >>> openai_name("model.encoder.layers.0.self_attn.q_proj.weight")
    'encoder.blocks.0.attn.query.weight'
    >>> openai_name("proj_out.weight") is None
    True
    """
    inner = name.removeprefix("model.")
    if inner == "proj_out.weight":  # the token embedding again
        return None
    part, _, rest = inner.partition(".")
    if part not in ("encoder", "decoder"):  # an encoder that was saved on its own
        part, rest = "encoder", inner
    for pattern, ours in (ENCODER_MODULES if part == "encoder" else DECODER_MODULES).items():
        rest = re.sub(pattern, ours, rest)
    return f"{part}.{rest}"


def _read_directory(path: Path, prefix: str) -> Checkpoint:
    """A Hugging Face directory."""
    file = path / "config.json"
    configuration = _configuration(file)
    kind = configuration.get("model_type")
    if kind != "whisper":
        raise CheckpointError(f"{file}: model_type is {kind!r}, not 'whisper'")
    tensors: Tensors = {}
    for part in _directory_files(path):
        tensors |= _read_safetensors(part, prefix)
    sizes = {
        ours: (f"{file}: {theirs}", configuration[theirs])
        for ours, theirs in CONFIGURED.items()
        if theirs in configuration
    }
    return Checkpoint(os.fspath(path), tensors, sizes)


def _directory_files(path: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory: one, or as its index says."""
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        files = _json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(n, str) for n in files.values()):
            raise CheckpointError(f"{index}: weight_map must name the file of each tensor")
        names = sorted(set(files.values()))
    for name in names:
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: the file is missing; {HOW_TO_GET}")
    return [path / name for name in names]


def _configuration(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: the file is missing; {HOW_TO_GET}")
    return _json(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is needed")
    return content


def _read_safetensors(path: Path, prefix: str) -> Tensors:
    safe_open, safetensor_error = _safetensors()
    header = _header(path)
    tensors: Tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in header:
                ours = openai_name(name)
                if ours is not None and ours.startswith(prefix):
                    tensors[ours] = _tensor(path, file, name, header)
    except safetensor_error as error:
        raise CheckpointError(f"{path}: {error}") from error
    return tensors


def _tensor(path: Path, file: Any, name: str, header: Mapping[str, Any]) -> NDArray[Any]:
    _check_type(path, name, header[name]["dtype"])
    return np.asarray(file.get_tensor(name))


def _check_type(path: Path, name: str, dtype: str) -> None:
    if dtype not in FLOATS:
        raise CheckpointError(
            f"{path}: tensor {name!r} is {dtype}; float tensors are needed: quantised checkpoints "
            "cannot be read"
        )


def _header(path: Path) -> Mapping[str, Any]:
    """A safetensors file's directory, checked against the file's length: safetensors itself does
    not say which tensor a truncated file ends in."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= size else b""
    try:
        header = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: no safetensors file, or cut short ({size} B)") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: no safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    ends = {name: _end(path, name, entry) for name, entry in header.items()}
    for name, end in sorted(ends.items(), key=lambda item: item[1]):
        needed = 8 + length + end
        if needed > size:
            raise CheckpointError(
                f"{path}: cut short within tensor {name!r}: {size} B, {needed} B are needed up "
                "to its end; copy or download the file again"
            )
    return header


def _end(path: Path, name: str, entry: Any) -> int:
    """Where a tensor's bytes end, counted from the end of the header."""
    match entry:
        case {"data_offsets": [int(), int(end)]}:
            return end
    raise CheckpointError(
        f"{path}: the header's entry {name!r} is {entry!r:.80}; two data_offsets are needed: copy "
        "or download the file again"
    )


def _read_pt(path: Path, prefix: str) -> Checkpoint:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: .pt files are read with torch, which is not installed: pip install torch; "
            "Hugging Face directories need no torch"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds, from pickle, zip and its own reader
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: no openai-whisper checkpoint, cut short, or not of tensors only "
            f"({first_line})"
        ) from error
    match content:
        case {"dims": dict(dims), "model_state_dict": Mapping() as state}:
            sizes = {name: (f"{path}: dims: {name}", said) for name, said in dims.items()}
        case _:
            raise CheckpointError(
                f"{path}: no openai-whisper checkpoint: 'dims' and 'model_state_dict' are needed"
            )
    tensors: Tensors = {}
    for name, tensor in state.items():
        if str(name).startswith(prefix):
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            _check_type(path, name, str(kind).removeprefix("torch."))
            tensors[name] = tensor.detach().float().numpy()
    return Checkpoint(os.fspath(path), tensors, sizes)


def _safetensors() -> tuple[Callable[..., Any], type[Exception]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "safetensors files are read with the package safetensors, which is not installed: "
            "pip install 'npu-matmul[whisper]'"
        ) from error
    assert ml_dtypes.bfloat16  # registers NumPy's bfloat16, which safetensors asks for by name
    return safe_open, SafetensorError
