"""What messages of XRT and its driver mean, in words for people."""

from __future__ import annotations

import pytest

from npu_matmul.device.xrt_errors import explain


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("DRM_IOCTL_AMDXDNA_CONFIG_HWCTX IOCTL failed (err=-62): Timer expired", "not answer"),
        ("DRM_IOCTL_AMDXDNA_GET_INFO IOCTL failed (err=-95): not supp", "newer than the amdxdna"),
        ("Heap at max size 67108864, can't expand further (err=28)", "instruction streams"),
        ("open failed (err=-13): Permission denied", "join its group"),
        ("opening the NPU: mmap(len=67108864) failed (err=-11): R", "locks 64 MiB of memory when"),
        ("a buffer of 1 B: mmap(len=67108864) failed (err=-11): Resource", "all buffers of this p"),
        ("something else", "npu-matmul doctor"),
    ],
)
def test_messages_of_xrt_are_explained(text: str, meaning: str) -> None:
    assert meaning in explain(text)
