"""Whisper models of each framework with seeded random weights, and features of their encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from npu_matmul.whisper.dimensions import SIZES

PRECISIONS = ["bf16", "bf16x3", "int8"]


def openai_model(size: str = "tiny", layers: int | None = None) -> Any:
    """An openai-whisper model; ``layers`` of its encoder, two of its decoder."""
    from whisper.model import ModelDimensions, Whisper

    audio = vars(SIZES[size]).copy()
    if layers is not None:
        audio["n_audio_layer"] = layers
    state, heads = audio["n_audio_state"], audio["n_audio_head"]
    model = Whisper(
        ModelDimensions(
            **audio,
            n_vocab=51_865,
            n_text_ctx=448,
            n_text_state=state,
            n_text_head=heads,
            n_text_layer=2,
        )
    )
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.01)
    return model.eval()


def transformers_model(size: str = "tiny", layers: int | None = None) -> Any:
    """transformers' WhisperForConditionalGeneration of the same sizes."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    dims = SIZES[size]
    configuration = WhisperConfig(
        d_model=dims.n_audio_state,
        encoder_layers=layers or dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        decoder_layers=2,
        decoder_attention_heads=dims.n_audio_head,
        decoder_ffn_dim=4 * dims.n_audio_state,
        num_mel_bins=dims.n_mels,
    )
    model = WhisperForConditionalGeneration(configuration)
    torch.nn.init.normal_(model.model.encoder.embed_positions.weight, std=0.1)
    for name, parameter in model.named_parameters():
        if "layer_norm" in name or name.endswith("bias"):  # as made they are ones and zeros
            torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.1)
    return model.eval()


def openai_features(model: Any, mel: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model.encoder(torch.from_numpy(mel)[None])[0])


def transformers_features(model: Any, mel: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model.model.encoder(torch.from_numpy(mel)[None]).last_hidden_state[0])


def openai_tensors(model: Any) -> dict[str, NDArray[np.float32]]:
    """The encoder's tensors, as our own encoder takes them."""
    return {name: tensor.numpy() for name, tensor in model.encoder.state_dict().items()}


def save_pt(path: Path, model: Any) -> Path:
    """As openai-whisper publishes its models."""
    torch.save({"dims": vars(model.dims), "model_state_dict": model.state_dict()}, path)
    return path
