"""Seeded models of openai-whisper and transformers; nothing is downloaded.

The frameworks warn of their own future; only the warnings of this project are errors here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from accuracy import pytest_terminal_summary  # noqa: F401 - a hook

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="make test-frameworks installs it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "frameworks" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every model is made of the same random numbers."""
    torch.manual_seed(2024)
    # torch's threads spin while they wait, on the cores that NumPy's then want
    torch.set_num_threads(1)
    yield


@pytest.fixture(scope="session")
def mel() -> Any:
    """Log-mel features of the recording, filled up to 30 s: (80, 3000)."""
    from npu_matmul.whisper.audio import pad_or_trim, speech_sample
    from npu_matmul.whisper.mel import host_log_mel_spectrogram

    return np.asarray(host_log_mel_spectrogram(pad_or_trim(speech_sample()), 80))
