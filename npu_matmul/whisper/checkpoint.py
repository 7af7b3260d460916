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
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npu_matmul.whisper.dimensions import (
    CheckpointError,
    Dimensions,
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
    "num_mel_bins": "n_mels",
    "max_source_positions": "n_audio_ctx",
    "d_model": "n_audio_state",
    "encoder_attention_heads": "n_audio_head",
    "encoder_layers": "n_audio_layer",
}
HOW_TO_GET = (
    "give a Hugging Face directory (hf download openai/whisper-base --local-dir whisper-base) "
    "or an openai-whisper .pt file; nothing is downloaded here"
)

Tensors = dict[str, NDArray[Any]]


def load_encoder(path: str | os.PathLike[str], **options: Any) -> AudioEncoder:
    """The audio encoder of a checkpoint; ``options`` are those of :class:`AudioEncoder`.

    Raises:
        CheckpointError: no checkpoint, truncated, or a tensor is missing or of a wrong shape.
        ModuleNotFoundError: what the file needs is not installed; the message says how to.
    """
    return AudioEncoder(load_tensors(path), source=os.fspath(path), **options)


def load_tensors(path: str | os.PathLike[str]) -> Tensors:
    """The encoder's tensors by openai-whisper's names, float32, each checked."""
    place = Path(path)
    tensors = encoder_tensors(load_state(place, "encoder."))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found = read_dimensions(shapes, os.fspath(path))
    if place.is_dir():
        _check_configuration(place, found)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {name!r} holds NaN or infinity")
    return tensors


def load_state(path: Path, prefix: str = "") -> Tensors:
    """The tensors of a checkpoint whose openai-whisper names begin with ``prefix``; the others are
    not read. Names begin with ``encoder.`` or ``decoder.``."""
    if path.is_dir():
        state: Tensors = {}
        for file in _directory_files(path):
            state |= _read_safetensors(file, prefix)
        return state
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file or directory; {HOW_TO_GET}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, prefix)
    if path.suffix == ".pt":
        return _read_pt(path, prefix)
    raise CheckpointError(
        f"{path}: a file that ends in .pt or .safetensors is needed; {HOW_TO_GET}"
    )


def encoder_tensors(state: Mapping[str, NDArray[Any]]) -> Tensors:
    """The encoder's part of a state, float32, its positions computed where they are not stored."""
    prefix = "encoder."
    tensors = {
        name.removeprefix(prefix): np.asarray(tensor, np.float32)
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    first = tensors.get("conv2.weight")
    if "positional_embedding" not in tensors and first is not None and first.ndim == 3:
        tensors["positional_embedding"] = sinusoids(1500, first.shape[0])
    return tensors


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


def _directory_files(path: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory: one, or as its index says."""
    kind = _configuration(path).get("model_type")
    if kind != "whisper":
        raise CheckpointError(f"{path / 'config.json'}: model_type is {kind!r}, not 'whisper'")
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
    for name in names:
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: the file is missing; {HOW_TO_GET}")
    return [path / name for name in names]


def _configuration(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path / 'config.json'}: the file is missing; {HOW_TO_GET}")
    return _json(path / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is needed")
    return content


def _check_configuration(path: Path, found: Dimensions) -> None:
    configuration = _configuration(path)
    for theirs, ours in CONFIGURED.items():
        has = getattr(found, ours)
        if configuration.get(theirs, has) != has:
            raise CheckpointError(
                f"{path / 'config.json'}: {theirs} is {configuration[theirs]}, the tensors "
                f"have {has}: 'encoder.conv1.weight' and the others are of another model"
            )


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
    if header[name]["dtype"] not in ("F16", "F32", "F64", "BF16"):
        raise CheckpointError(
            f"{path}: tensor {name!r} is {header[name]['dtype']}; float tensors are needed: "
            "quantised checkpoints cannot be read"
        )
    return np.asarray(file.get_tensor(name))


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
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        needed = 8 + length + entry["data_offsets"][1]
        if needed > size:
            raise CheckpointError(
                f"{path}: cut short within tensor {name!r}: {size} B, {needed} B are needed up "
                "to its end; copy or download the file again"
            )
    return tensors


def _read_pt(path: Path, prefix: str) -> Tensors:
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
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= set(content):
        raise CheckpointError(
            f"{path}: no openai-whisper checkpoint: 'dims' and 'model_state_dict' are needed"
        )
    state = content["model_state_dict"]
    return {n: tensor.float().numpy() for n, tensor in state.items() if n.startswith(prefix)}


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
