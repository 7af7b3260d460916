"""Audio to text: the encoder on ``npu_matmul``, openai-whisper's decoder on the host.

Needs openai-whisper: ``pip install 'npu-matmul[whisper]' openai-whisper``. Everything but the
encoder is that package's: features, languages, timestamps, the search for text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.whisper.checkpoint import read_checkpoint
from npu_matmul.whisper.dimensions import HEAD_WIDTH, CheckpointError
from npu_matmul.whisper.files import open_audio
from npu_matmul.whisper.model import AudioEncoder


def load_model(path: str | os.PathLike[str], **options: Any) -> Any:
    """An openai-whisper model (``whisper.model.Whisper``) whose encoder is an
    :class:`AudioEncoder`, which takes ``options``. Any checkpoint that :mod:`.checkpoint` reads.

    Raises:
        CheckpointError: the checkpoint cannot be used; names the tensor.
        ModuleNotFoundError: openai-whisper is not installed.
    """
    try:
        from whisper.model import ModelDimensions, Whisper
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "transcribing needs openai-whisper's decoder, which is not installed: "
            "pip install 'npu-matmul[transcribe]'"
        ) from error
    import torch

    from npu_matmul.integrations.torch import EncoderModule

    source = os.fspath(path)
    checkpoint = read_checkpoint(path)
    encoder = AudioEncoder(checkpoint.encoder(), source=source, **options)
    decoder = checkpoint.part("decoder.")
    text = _text_dimensions(decoder, source)
    checkpoint.check_sizes(text)
    dims = ModelDimensions(**{**vars(encoder.dims), **text})
    model = Whisper(ModelDimensions(**{**vars(dims), "n_audio_layer": 0}))
    model.dims = dims
    model.encoder = EncoderModule(encoder)
    _check_decoder(decoder, model.decoder.state_dict(), source)
    model.decoder.load_state_dict({n: torch.from_numpy(t) for n, t in decoder.items()})
    return model.eval()


def transcribe(model: Any, audio: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """openai-whisper's result for an audio file: ``text``, ``segments``, ``language``. ``options``
    are those of ``whisper.transcribe``.

    openai-whisper makes features of a whole file at once: about 2 GB of memory for each hour.

    Raises:
        AudioError, OSError: the file cannot be used.
    """
    samples = np.concatenate(list(open_audio(audio).blocks()))
    result: dict[str, Any] = model.transcribe(samples, fp16=False, **options)
    return result


def _text_dimensions(decoder: Mapping[str, NDArray[Any]], source: str) -> dict[str, int]:
    for name in ("token_embedding.weight", "positional_embedding"):
        if name not in decoder:
            raise CheckpointError(f"{source}: tensor 'decoder.{name}' is missing")
        if decoder[name].ndim != 2:
            raise CheckpointError(
                f"{source}: tensor 'decoder.{name}' has shape {decoder[name].shape}; two "
                "dimensions are needed"
            )
    vocabulary, state = decoder["token_embedding.weight"].shape
    layers = {int(n.split(".")[1]) for n in decoder if re.match(r"blocks\.\d+\.", n)}
    return {
        "n_vocab": vocabulary,
        "n_text_ctx": decoder["positional_embedding"].shape[0],
        "n_text_state": state,
        "n_text_head": state // HEAD_WIDTH,
        "n_text_layer": max(layers, default=-1) + 1,
    }


def _check_decoder(given: Mapping[str, Any], needed: Mapping[str, Any], source: str) -> None:
    for name, tensor in needed.items():
        if name not in given:
            raise CheckpointError(f"{source}: tensor 'decoder.{name}' is missing")
        if tuple(given[name].shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"{source}: tensor 'decoder.{name}' has shape {tuple(given[name].shape)}, "
                f"{tuple(tensor.shape)} is needed"
            )
    unknown = sorted(set(given) - set(needed))
    if unknown:
        raise CheckpointError(f"{source}: tensor 'decoder.{unknown[0]}' is of no Whisper decoder")
