"""Memory that calls use again: one array per name and thread, as large as the largest so far."""

from __future__ import annotations

import doctest
import threading

import numpy as np
import pytest
from comparing import peak_bytes

from npu_matmul.host import scratch as module
from npu_matmul.host.pointers import LINE_BYTES, address
from npu_matmul.host.scratch import scratch

FLOAT32, INT8 = np.dtype(np.float32), np.dtype(np.int8)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kept", threading.local())


def test_the_docstring_example_holds() -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


def test_the_same_name_is_the_same_memory_whatever_its_shape_and_type() -> None:
    first = scratch("x", (10, 20), FLOAT32)
    for shape, dtype in [((10, 20), FLOAT32), ((800,), INT8), ((3, 5), INT8), ((0, 7), FLOAT32)]:
        again = scratch("x", shape, dtype)
        assert (again.shape, again.dtype) == (shape, dtype)
        assert address(again) == address(first)
        assert address(again) % LINE_BYTES == 0 and again.flags.c_contiguous


def test_other_names_and_threads_have_memory_of_their_own() -> None:
    made = [scratch("x", (100,), FLOAT32), scratch("y", (100,), FLOAT32)]
    other = threading.Thread(target=lambda: made.append(scratch("x", (100,), FLOAT32)))
    other.start()
    other.join()
    for i, one in enumerate(made):
        assert not any(np.may_share_memory(one, two) for two in made[:i])


def test_a_larger_array_is_made_and_kept() -> None:
    scratch("x", (100,), FLOAT32)
    larger = scratch("x", (101,), FLOAT32)
    assert larger.shape == (101,)
    assert address(scratch("x", (100,), FLOAT32)) == address(larger)


def test_asking_again_allocates_nothing_unless_it_is_too_large_to_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape, size = (1000, 100), 400_000
    monkeypatch.setattr(module, "MOST_BYTES", size)
    scratch("x", shape, FLOAT32)
    assert peak_bytes(lambda: scratch("x", shape, FLOAT32)) < size / 100
    scratch("y", (1001, 100), FLOAT32)
    assert peak_bytes(lambda: scratch("y", (1001, 100), FLOAT32)) > size
