"""Audio to text: our encoder before openai-whisper's decoder gives the text that theirs gives."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import openai_model, save_pt, transformers_model

from npu_matmul import cli
from npu_matmul.whisper.audio import speech_sample
from npu_matmul.whisper.dimensions import CheckpointError
from npu_matmul.whisper.transcribe import load_model, transcribe

soundfile = pytest.importorskip("soundfile")
# Random weights never end a sentence; few tokens are enough to compare.
FEW = {"language": "en", "temperature": 0.0, "sample_len": 8, "condition_on_previous_text": False}


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    path = tmp_path / "speech.flac"
    soundfile.write(path, speech_sample(), 16_000)
    return path


def test_text_is_that_of_openai_whisper(speech: Path, tmp_path: Path) -> None:
    theirs = openai_model("tiny", layers=2)
    want = theirs.transcribe(speech_sample(), fp16=False, **FEW)
    ours = load_model(save_pt(tmp_path / "tiny.pt", theirs), device="cpu", precision="bf16x3")
    assert vars(ours.dims) == vars(theirs.dims)
    got = transcribe(ours, speech, **FEW)
    assert got["text"] and got["text"] == want["text"]
    assert [s["tokens"] for s in got["segments"]] == [s["tokens"] for s in want["segments"]]


def test_a_directory_of_hugging_face_transcribes_too(speech: Path, tmp_path: Path) -> None:
    theirs = transformers_model("tiny", layers=1)
    theirs.save_pretrained(tmp_path / "tiny")
    ours = load_model(tmp_path / "tiny", device="cpu", precision="bf16x3")
    tokens = torch.tensor([[50258, 50259, 50359, 7, 99]])
    mel = torch.randn(1, 80, 3000)
    with torch.no_grad():
        want = theirs(mel, decoder_input_ids=tokens).logits
        got = ours(mel, tokens)
    assert (got - want).norm() / want.norm() < 1e-3
    assert transcribe(ours, speech, **FEW)["text"]


def test_the_configuration_must_be_of_this_decoder(tmp_path: Path) -> None:
    theirs = transformers_model("tiny", layers=1)
    theirs.config.decoder_attention_heads = 12
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"json: decoder_attention_heads is 12, .* have 6"):
        load_model(tmp_path, device="cpu")


def test_a_wrong_decoder_tensor_is_named(tmp_path: Path) -> None:
    model = openai_model("tiny", layers=1)
    state = model.state_dict()
    path = tmp_path / "tiny.pt"
    name = "decoder.blocks.1.cross_attn.key.weight"
    for tensor, words in (
        (None, f"tensor '{name}' is missing"),
        (torch.zeros(3, 384), rf"tensor '{name}' has shape \(3, 384\), \(384, 384\) is needed"),
        (torch.full((384, 384), torch.inf), f"tensor '{name}' holds NaN or infinity"),
    ):
        broken = {n: t for n, t in {**state, name: tensor}.items() if t is not None}
        torch.save({"dims": vars(model.dims), "model_state_dict": broken}, path)
        with pytest.raises(CheckpointError, match=words):
            load_model(path, device="cpu")
    flat = {**state, "decoder.token_embedding.weight": torch.zeros(384)}
    torch.save({"dims": vars(model.dims), "model_state_dict": flat}, path)
    with pytest.raises(CheckpointError, match=r"embedding\.weight' has shape \(384,\); two dim"):
        load_model(path, device="cpu")
    encoder_only = {n: t for n, t in state.items() if n.startswith("encoder.")}
    torch.save({"dims": vars(model.dims), "model_state_dict": encoder_only}, path)
    with pytest.raises(CheckpointError, match=r"'decoder\.token_embedding\.weight' is missing"):
        load_model(path, device="cpu")


def test_the_command_prints_or_writes_the_text(speech: Path, tmp_path: Path) -> None:
    weights = str(save_pt(tmp_path / "tiny.pt", openai_model("tiny", layers=1)))
    options = ["--weights", weights, "--device", "cpu", "--language", "en"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "npu_matmul.whisper.transcribe.transcribe",
            lambda model, audio, **o: transcribe(model, audio, **{**FEW, **o}),
        )
        printed = CliRunner().invoke(cli.app, ["transcribe", str(speech), *options])
        assert printed.exit_code == 0, printed.output
        assert " s to " in printed.output
        assert "encoder computed on: " in printed.output and "cpu (" in printed.output
        for suffix in ("txt", "srt", "vtt", "tsv", "json"):
            output = tmp_path / f"out.{suffix}"
            command = ["transcribe", str(speech), *options, "-o", str(output)]
            done = CliRunner().invoke(cli.app, command)
            assert done.exit_code == 0, done.output
            assert output.read_text(encoding="utf-8").strip()
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["language"] == "en"


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "whisper.model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'npu-matmul\[transcribe\]'"):
        load_model(tmp_path)


def test_audio_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    weights = save_pt(tmp_path / "tiny.pt", openai_model("tiny", layers=1))
    (tmp_path / "a.wav").touch()
    command = ["transcribe", str(tmp_path / "a.wav"), "--weights", str(weights), "--device", "cpu"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code != 0 and "the file is empty" in str(done.exception)


# The README's lines

FFMPEG = f"""#!{sys.executable}
import sys, numpy, soundfile  # in the place of ffmpeg, which openai-whisper reads audio with
samples, _ = soundfile.read(sys.argv[sys.argv.index("-i") + 1], dtype="int16")
sys.stdout.buffer.write(samples.astype("<i2").tobytes())
"""


def examples() -> list[str]:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    return [block for block in blocks if "integrations.torch" in block]


def test_the_lines_for_openai_whisper_run(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import whisper

    (example,) = (block for block in examples() if "import whisper" in block)
    model = openai_model("tiny", layers=1)
    transcribe_fully = model.transcribe
    monkeypatch.setattr(whisper, "load_model", lambda name: model)
    monkeypatch.setattr(model, "transcribe", lambda audio: transcribe_fully(audio, **FEW), False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").write_text(FFMPEG)
    (tmp_path / "bin" / "ffmpeg").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert isinstance(names["text"], str) and names["text"]
    assert type(model.encoder.blocks[0].mlp[0]).__name__ == "AcceleratedLinear"


def test_the_lines_for_transformers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (block for block in examples() if "transformers" in block)
    theirs = transformers_model("tiny", layers=1)
    theirs.generation_config.max_new_tokens = 4
    theirs.save_pretrained(tmp_path / "whisper-base")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"mel": torch.from_numpy(np.zeros((1, 80, 3000), np.float32))}
    exec(example, names)
    assert names["tokens"].shape[0] == 1
    layer = names["model"].model.encoder.layers[0].fc1
    assert type(layer).__name__ == "AcceleratedLinear"
