"""Checkpoints: Hugging Face's files are read without torch; a broken one is an error that names the
tensor. Those of openai-whisper need torch, see ``tests/frameworks``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from comparing import assert_equal_bits
from numpy.typing import NDArray
from whisper_files import their_name

from npu_matmul.whisper import checkpoint
from npu_matmul.whisper.checkpoint import load_encoder, load_tensors, openai_name
from npu_matmul.whisper.dimensions import CheckpointError, Dimensions, random_tensors

safetensors = pytest.importorskip("safetensors.numpy")

SMALL = Dimensions(n_mels=12, n_audio_ctx=1500, n_audio_state=64, n_audio_head=1, n_audio_layer=2)
TENSORS = random_tensors(SMALL, seed=3)
CONFIGURATION = {
    "model_type": "whisper",
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 1,
    "num_mel_bins": 12,
    "max_source_positions": 1500,
}
State = dict[str, NDArray[Any]]


def hugging_face(prefix: str = "model.encoder.", dtype: Any = np.float32) -> State:
    """The tensors under Hugging Face's names, among some of a decoder."""
    state = {prefix + their_name(name): tensor.astype(dtype) for name, tensor in TENSORS.items()}
    if prefix:
        state["model.decoder.embed_tokens.weight"] = np.zeros((5, 64), dtype)
        state["proj_out.weight"] = np.zeros((5, 64), dtype)
    return state


def write(path: Path, state: State, configuration: Any = CONFIGURATION) -> Path:
    path.mkdir(exist_ok=True)
    safetensors.save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(configuration))
    return path


def assert_is_ours(path: Path) -> None:
    loaded = load_tensors(path)
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert_equal_bits(loaded[name], tensor)


# What can be read


@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder.", ""])
def test_a_directory_is_read_whatever_the_tensors_are_prefixed_with(
    tmp_path: Path, prefix: str
) -> None:
    assert_is_ours(write(tmp_path, hugging_face(prefix)))
    assert_is_ours(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(tmp_path: Path, dtype: Any) -> None:
    loaded = load_tensors(write(tmp_path, hugging_face(dtype=dtype)))
    want = TENSORS["conv1.weight"].astype(dtype).astype(np.float32)
    assert_equal_bits(loaded["conv1.weight"], want)


def test_several_files_are_read_as_their_index_says(tmp_path: Path) -> None:
    state = hugging_face()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    write(tmp_path, state)
    (tmp_path / "model.safetensors").unlink()
    for part, held in parts.items():
        safetensors.save_file({name: state[name] for name in held}, tmp_path / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_is_ours(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors: the file is missing"):
        load_tensors(tmp_path)


def test_positions_that_are_not_stored_are_the_sinusoids(tmp_path: Path) -> None:
    state = hugging_face()
    del state["model.encoder.embed_positions.weight"]
    assert_is_ours(write(tmp_path, state))


def test_positions_that_are_stored_are_kept(tmp_path: Path) -> None:
    state = hugging_face()
    stored = state["model.encoder.embed_positions.weight"] + np.float32(1)
    state["model.encoder.embed_positions.weight"] = stored
    assert_equal_bits(load_tensors(write(tmp_path, state))["positional_embedding"], stored)


def test_an_encoder_is_made_of_it_without_torch(tmp_path: Path) -> None:
    write(tmp_path, hugging_face())
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"  # importing them fails
        "import numpy as np\n"
        "from npu_matmul.whisper.checkpoint import load_encoder\n"
        f"encoder = load_encoder({str(tmp_path)!r}, device='cpu', precision='int8')\n"
        "assert encoder.dims.n_mels == 12 and encoder.dims.n_audio_layer == 2, encoder\n"
        "assert encoder(np.zeros((12, 3000))).shape == (1500, 64)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=100)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.encoder.layers.11.self_attn.out_proj.bias", "encoder.blocks.11.attn.out.bias"),
        ("encoder.layers.3.final_layer_norm.weight", "encoder.blocks.3.mlp_ln.weight"),
        ("layers.3.fc2.weight", "encoder.blocks.3.mlp.2.weight"),
        ("layer_norm.bias", "encoder.ln_post.bias"),
        (
            "model.decoder.layers.1.encoder_attn.k_proj.weight",
            "decoder.blocks.1.cross_attn.key.weight",
        ),
        (
            "model.decoder.layers.1.encoder_attn_layer_norm.bias",
            "decoder.blocks.1.cross_attn_ln.bias",
        ),
        ("model.decoder.layer_norm.weight", "decoder.ln.weight"),
        ("model.decoder.embed_tokens.weight", "decoder.token_embedding.weight"),
        ("model.decoder.embed_positions.weight", "decoder.positional_embedding"),
        ("proj_out.weight", None),
    ],
)
def test_names_of_hugging_face_are_translated(theirs: str, ours: str | None) -> None:
    assert openai_name(theirs) == ours


# What cannot


def without_positions(state: State) -> None:
    del state["model.encoder.embed_positions.weight"]
    state["model.encoder.conv2.weight"] = np.zeros((7, 64, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s.pop("model.encoder.layers.1.fc1.bias"),
            "tensor 'blocks.1.mlp.0.bias' is missing; its shape is (256,)",
        ),
        (
            lambda s: s.update({"model.encoder.conv2.weight": np.zeros((64, 64, 5), np.float32)}),
            "tensor 'conv2.weight' has shape (64, 64, 5); with 64 states and 12 mels",
        ),
        (
            lambda s: s.update({"model.encoder.conv1.bias": np.zeros(64, np.int8)}),
            "tensor 'model.encoder.conv1.bias' is I8; float tensors are needed",
        ),
        (
            lambda s: s["model.encoder.layers.0.fc2.bias"].__setitem__(5, np.nan),
            "tensor 'encoder.blocks.0.mlp.2.bias' holds NaN or infinity",
        ),
        (
            lambda s: s.update({"model.encoder.adapter": np.zeros(3, np.float32)}),
            "the first is 'adapter'",
        ),
        (lambda s: s.clear(), "tensor 'conv1.weight' is missing: this is no Whisper"),
        (
            lambda s: s.update({"model.encoder.layer_norm.bias": np.full(64, 1e300)}),
            "tensor 'encoder.ln_post.bias' holds NaN or infinity",
        ),
        (without_positions, "tensor 'conv2.weight' has 7 outputs"),
    ],
    ids=["missing", "shape", "quantised", "NaN", "too many", "none", "too large", "positions"],
)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, change: Callable[[State], None], words: str
) -> None:
    state = hugging_face()
    change(state)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(write(tmp_path, state))
    assert words in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_says_within_which_tensor(tmp_path: Path, kept: float) -> None:
    file = write(tmp_path, hugging_face()) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    words = "cut short within tensor '(model|proj_out)" if kept >= 0.5 else "no safetensors file"
    with pytest.raises(CheckpointError, match=words):
        load_encoder(tmp_path)


@pytest.mark.parametrize("short", [1, 8])
def test_the_last_bytes_are_missed_in_the_tensor_that_they_are_of(
    tmp_path: Path, short: int
) -> None:
    """Wherever the header names it."""
    file = tmp_path / "model.safetensors"
    entries = {"last": [16, 24], "first": [0, 8], "second": [8, 16]}
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": offsets}
        for name, offsets in entries.items()
    }
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + bytes(24)
    for missing, name in ((short, "last"), (8 + short, "second"), (16 + short, "first")):
        file.write_bytes(whole[: len(whole) - missing])
        with pytest.raises(CheckpointError, match=f"cut short within tensor '{name}'"):
            load_encoder(file)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html> an error page", b"\xff" * 16])
def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_encoder(file)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ([1], "no safetensors file"),
        ({"a": 1}, "entry 'a' is 1"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "entry 'a' is .*data_offsets"),
        ({"a": {"dtype": "F32", "data_offsets": 4}}, "entry 'a' is .*data_offsets"),
        ({"a": {"dtype": 1, "shape": [1], "data_offsets": [0, 4]}}, "header"),
        ({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}, "header"),
        ({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, "header"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: Any, words: str) -> None:
    file = write(tmp_path, hugging_face()) / "model.safetensors"
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{words}"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}])
def test_a_damaged_index_is_refused(tmp_path: Path, index: Any) -> None:
    path = write(tmp_path, hugging_face()) / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map must name the file of"):
        load_encoder(tmp_path)


def test_the_configuration_must_be_of_these_tensors(tmp_path: Path) -> None:
    write(tmp_path, hugging_face(), {**CONFIGURATION, "encoder_layers": 4})
    with pytest.raises(
        CheckpointError, match=r"config.json: encoder_layers is 4, the tensors .* 2"
    ):
        load_encoder(tmp_path)
    write(tmp_path, hugging_face(), {"model_type": "bert"})
    with pytest.raises(CheckpointError, match="model_type is 'bert', not 'whisper'"):
        load_encoder(tmp_path)
    for text in ("{", "[]", "\xff"):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"config\.json: (no|a) JSON"):
            load_encoder(tmp_path)


def test_what_is_no_checkpoint_is_refused_with_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    places = {
        "absent": "there is no such file or directory",
        "model.bin": "ends in .pt or .safetensors",
        "": "config.json: the file is missing",
    }
    for name, words in places.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load_encoder(tmp_path / name)
        assert "nothing is downloaded here" in str(caught.value)


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, hugging_face())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'npu-matmul\[whisper\]'"):
        load_encoder(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match=r"read with torch, .* Hugging Face .* no torch"):
        load_encoder(tmp_path / "model.pt")
