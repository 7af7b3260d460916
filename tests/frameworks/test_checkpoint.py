"""Checkpoints of openai-whisper: a .pt file is read as tensors only; a broken one is an error that
names the tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import openai_features, openai_model, save_pt
from naive_encoder import relative_error
from numpy.typing import NDArray

from npu_matmul.whisper.checkpoint import load_encoder, load_tensors
from npu_matmul.whisper.dimensions import CheckpointError
from npu_matmul.whisper.transcribe import load_model

Features = NDArray[np.float32]


@pytest.mark.parametrize("half", [False, True])
def test_a_pt_file_is_read(half: bool, tmp_path: Path, mel: Features) -> None:
    model = openai_model("tiny", layers=1)
    if half:  # as they are published
        model.load_state_dict({n: t.half() for n, t in model.state_dict().items()})
    encoder = load_encoder(save_pt(tmp_path / "tiny.pt", model), device="cpu", precision="bf16x3")
    assert relative_error(encoder(mel), openai_features(model, mel)) <= 1e-3


def test_a_pt_file_that_is_broken_is_refused(tmp_path: Path) -> None:
    model = openai_model("tiny", layers=1)
    path = save_pt(tmp_path / "tiny.pt", model)
    content = path.read_bytes()
    for broken in (b"", b"nonsense", content[: len(content) // 2], content[:-100]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"tiny\.pt: no openai-whisper checkpoint"):
            load_encoder(path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="'dims' and 'model_state_dict' are needed"):
        load_encoder(path)
    del model.encoder.blocks[0].attn.key.weight
    with pytest.raises(CheckpointError, match=r"tensor 'blocks\.0\.attn\.key\.weight' is missing"):
        load_encoder(save_pt(path, model))


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_code_in_a_pt_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"dims": Evil(), "model_state_dict": {}}, "evil.pt")
    with pytest.raises(CheckpointError, match="not of tensors only"):
        load_encoder("evil.pt")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(384, dtype=torch.int8), "is int8; float tensors are needed"),
        ([0.0] * 384, "is list; float tensors are needed"),
        (torch.full((384,), torch.nan), "holds NaN or infinity"),
        (torch.zeros(384, dtype=torch.float64).requires_grad_(), ""),  # can be read
    ],
)
def test_a_tensor_of_a_pt_file_that_cannot_be_used_is_named(
    tmp_path: Path, tensor: Any, words: str
) -> None:
    model = openai_model("tiny", layers=1)
    name = "encoder.blocks.0.mlp.2.bias"
    state = {**model.state_dict(), name: tensor}
    torch.save({"dims": vars(model.dims), "model_state_dict": state}, tmp_path / "tiny.pt")
    if not words:
        assert not load_tensors(tmp_path / "tiny.pt")["blocks.0.mlp.2.bias"].any()
        return
    for load in (load_tensors, load_model):
        with pytest.raises(CheckpointError, match=rf"tiny\.pt: tensor '{name}' {words}"):
            load(tmp_path / "tiny.pt")


@pytest.mark.parametrize(
    ("size", "said", "loaders"),
    [
        ("n_audio_head", 4, (load_tensors, load_model)),
        ("n_audio_layer", 2, (load_tensors, load_model)),
        ("n_text_head", 12, (load_model,)),
    ],
)
def test_the_sizes_that_a_pt_file_gives_itself_must_be_those_of_its_tensors(
    tmp_path: Path, size: str, said: int, loaders: Any
) -> None:
    model = openai_model("tiny", layers=1)
    assert getattr(model.dims, size) != said
    setattr(model.dims, size, said)
    path = save_pt(tmp_path / "tiny.pt", model)
    for load in loaders:
        with pytest.raises(CheckpointError, match=rf"dims: {size} is {said}, the tensors have \d"):
            load(path)
    torch.save({"dims": [4], "model_state_dict": model.state_dict()}, path)
    with pytest.raises(CheckpointError, match="'dims' and 'model_state_dict' are needed"):
        load_tensors(path)
