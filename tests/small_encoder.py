"""A small encoder: its tensors, features for it, and what its definition makes of them."""

from __future__ import annotations

import numpy as np
from naive_encoder import naive_encoder

from npu_matmul.whisper.dimensions import Dimensions, random_tensors

SMALL = Dimensions(n_mels=12, n_audio_ctx=30, n_audio_state=128, n_audio_head=2, n_audio_layer=2)
TENSORS = random_tensors(SMALL, seed=7)
MEL = np.random.default_rng(1).standard_normal((12, 60), np.float32)
WANT = naive_encoder(TENSORS, MEL, heads=2)
FLOAT32 = "host float32"  # where attention is computed without bf16 instructions

# Relative errors: three bf16 terms leave about 2**-16 of a product, one leaves 2**-9, int8 2**-7.
BOUNDS = {"bf16x3": 5e-5, "bf16": 1e-2, "int8": 4e-2}
