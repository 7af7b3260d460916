"""Our encoder in NumPy against the encoders of openai-whisper and of transformers, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import Features, check
from models import (
    PRECISIONS,
    openai_features,
    openai_model,
    openai_tensors,
    transformers_features,
    transformers_model,
)

from npu_matmul.device import NpuDevice
from npu_matmul.whisper.audio import pad_or_trim, speech_sample
from npu_matmul.whisper.checkpoint import load_encoder
from npu_matmul.whisper.dimensions import sinusoids
from npu_matmul.whisper.mel import LogMel
from npu_matmul.whisper.model import AudioEncoder


@pytest.mark.parametrize("attention", ["host", "device"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiny_equals_openai_whisper(
    precision: str, attention: str, mel: Features, record_property: Any
) -> None:
    model = openai_model("tiny")
    encoder = AudioEncoder(
        openai_tensors(model), device="cpu", precision=precision, attention=attention
    )
    check(encoder(mel), openai_features(model, mel), precision, record_property)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiny_equals_transformers(
    precision: str, mel: Features, tmp_path: Path, record_property: Any
) -> None:
    model = transformers_model("tiny")
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, device="cpu", precision=precision)
    check(encoder(mel), transformers_features(model, mel), precision, record_property)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_layer_of_base_equals_both(
    precision: str, mel: Features, tmp_path: Path, record_property: Any
) -> None:
    model = openai_model("base", layers=1)
    encoder = AudioEncoder(openai_tensors(model), device="cpu", precision=precision)
    check(encoder(mel), openai_features(model, mel), precision, record_property)
    theirs = transformers_model("base", layers=1)
    theirs.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, device="cpu", precision=precision)
    check(encoder(mel), transformers_features(theirs, mel), precision, record_property)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_one_layer_of_base_on_an_npu(
    npu: NpuDevice, precision: str, mel: Features, record_property: Any
) -> None:
    model = openai_model("base", layers=1)
    encoder = AudioEncoder(openai_tensors(model), device=npu, precision=precision, attention="host")
    check(encoder(mel), openai_features(model, mel), precision, record_property)


def test_one_layer_of_tiny_on_an_npu_in_three_terms(
    npu: NpuDevice, mel: Features, record_property: Any
) -> None:
    model = openai_model("tiny", layers=1)
    encoder = AudioEncoder(openai_tensors(model), device=npu, precision="bf16x3", attention="host")
    check(encoder(mel), openai_features(model, mel), "bf16x3", record_property)


# Features and positions


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_features_of_a_window_are_those_of_both(n_mels: int) -> None:
    import whisper
    from transformers import WhisperFeatureExtractor

    samples = pad_or_trim(speech_sample())
    openai = whisper.log_mel_spectrogram(torch.from_numpy(samples), n_mels).numpy()
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    hugging_face = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0]
    got = LogMel(n_mels, device="cpu")(samples)
    for want in (openai, hugging_face):
        error = np.abs(got - want)
        assert error.mean() <= 1e-3 and np.percentile(error, 99.9) <= 1e-2
        assert error.max() <= 1e-2


def test_positions_are_openai_whispers() -> None:
    from whisper.model import sinusoids as theirs

    want = theirs(1500, 512).numpy()
    np.testing.assert_allclose(sinusoids(1500, 512), want, rtol=0, atol=2e-4)  # float32 angles
