"""Files for tests of the encoder: a checkpoint small enough to be quick, and audio."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from npu_matmul.whisper.audio import speech_sample
from npu_matmul.whisper.dimensions import Dimensions, random_tensors

SMALL = Dimensions(n_mels=80, n_audio_ctx=1500, n_audio_state=64, n_audio_head=1, n_audio_layer=2)
TENSORS = random_tensors(SMALL, seed=5)


# openai-whisper's names of modules, and Hugging Face's.
THEIR_MODULES = [
    ("blocks.", "layers."),
    ("attn_ln", "self_attn_layer_norm"),
    ("mlp_ln", "final_layer_norm"),
    ("mlp.0", "fc1"),
    ("mlp.2", "fc2"),
    ("attn.query", "self_attn.q_proj"),
    ("attn.key", "self_attn.k_proj"),
    ("attn.value", "self_attn.v_proj"),
    ("attn.out", "self_attn.out_proj"),
    ("positional_embedding", "embed_positions.weight"),
    ("ln_post", "layer_norm"),
]


def their_name(name: str) -> str:
    """Hugging Face's name of an encoder's tensor."""
    for ours, theirs in THEIR_MODULES:
        name = name.replace(ours, theirs)
    return name


def write_checkpoint(path: Path) -> Path:
    """A Hugging Face directory with an encoder of SMALL sizes."""
    from safetensors.numpy import save_file

    path.mkdir()
    state = {their_name(name): tensor for name, tensor in TENSORS.items()}
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "whisper", "d_model": 64}))
    return path


def write_audio(
    path: Path, seconds: float | None = None, rate: int = 16_000, channels: int = 1
) -> Path:
    """The recording over and over for so long; as it is where no length is given."""
    import soundfile

    samples: NDArray[np.float32] = speech_sample()
    if seconds is not None:
        samples = np.resize(samples, int(seconds * rate))
    soundfile.write(path, np.stack([samples] * channels, axis=1), rate)
    return path
