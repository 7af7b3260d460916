"""Whisper's audio encoder on ``npu_matmul``: audio files, features, checkpoints, the network.

>>> import numpy as np
>>> from npu_matmul.whisper import log_mel_spectrogram, pad_or_trim
>>> log_mel_spectrogram(pad_or_trim(np.zeros(16_000)), device="cpu").shape
(80, 3000)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npu_matmul.whisper.audio import AudioError as AudioError
    from npu_matmul.whisper.audio import pad_or_trim as pad_or_trim
    from npu_matmul.whisper.audio import speech_sample as speech_sample
    from npu_matmul.whisper.checkpoint import load_encoder as load_encoder
    from npu_matmul.whisper.dimensions import CheckpointError as CheckpointError
    from npu_matmul.whisper.mel import log_mel_spectrogram as log_mel_spectrogram
    from npu_matmul.whisper.model import AudioEncoder as AudioEncoder

_PLACES = {
    "AudioEncoder": "model",
    "AudioError": "audio",
    "CheckpointError": "dimensions",
    "load_encoder": "checkpoint",
    "log_mel_spectrogram": "mel",
    "pad_or_trim": "audio",
    "speech_sample": "audio",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
