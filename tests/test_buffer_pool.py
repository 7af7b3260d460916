"""Buffers are lent again between calls, as strict as new ones, and never to two at once."""

from __future__ import annotations

import doctest
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from comparing import assert_equal_bits, peak_bytes, product_int32, random_int8
from hypothesis import given
from hypothesis import strategies as st

from npu_matmul import last_call, npu_matmul, pack_b
from npu_matmul.device import Buffer, BufferSizeError, NpuDevice, buffer_pool
from npu_matmul.device.buffer_pool import BufferPool, pool_size
from npu_matmul.device.emulated import EmulatedDevice
from npu_matmul.kernel import load_kernel
from npu_matmul.precision import PRECISIONS
from npu_matmul.strategies import STRATEGIES
from npu_matmul.tiler import TileGrid

POISON = 0xA5


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(buffer_pool).failed == 0


def memory(buffer: Buffer) -> int:
    address: int = buffer.host.__array_interface__["data"][0]
    return address


def test_what_was_given_back_is_lent_again(npu: NpuDevice) -> None:
    with npu.lend(5000) as first:
        place = memory(first)
    with npu.record() as counters, npu.lend(4900) as second:
        assert memory(second) == place
        assert second.nbytes == second.host.size == 4900
        second.host[:] = 7
        second.sync_to_device()
    assert (counters.allocations, counters.bytes_to_device) == (0, 4900)
    assert npu.totals.allocations == 1


def test_two_at_once_are_two(npu: NpuDevice) -> None:
    with npu.lend(64) as first, npu.lend(64) as second:
        assert not np.shares_memory(first.host, second.host)
    with npu.lend(64) as again, npu.lend(64) as other:
        assert {memory(again), memory(other)} == {memory(first), memory(second)}
    assert npu.totals.allocations == 2


def test_a_lent_emulated_buffer_is_poisoned_anew_on_both_sides() -> None:
    npu = EmulatedDevice()
    with npu.lend(64) as buffer:
        buffer.host[:] = 1
        buffer.sync_to_device()
    with npu.lend(64) as buffer:
        assert set(buffer.host.tolist()) == {POISON}
        assert not buffer.memory.known.any()  # type: ignore[attr-defined]
        buffer.sync_from_device()
        assert set(buffer.host.tolist()) == {POISON}
    assert npu.totals.allocations == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sync_that_is_forgotten_is_caught_in_a_reused_buffer_too(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    npu = EmulatedDevice()
    a, b = random_int8(1, 20, 30), random_int8(2, 30, 40)
    want = npu_matmul(a, b, device=npu, strategy=strategy)
    with monkeypatch.context() as patch:
        patch.setattr(Buffer, "sync_to_device", lambda self: None)
        with pytest.raises(RuntimeError, match="never synced to the device"):
            npu_matmul(a, b, device=npu, strategy=strategy)
    assert_equal_bits(npu_matmul(a, b, device=npu, strategy=strategy), want)


def test_what_failed_is_not_lent_again(npu: NpuDevice) -> None:
    with pytest.raises(KeyError), npu.lend(64) as first:
        raise KeyError
    with npu.lend(64) as second:
        assert not np.shares_memory(first.host, second.host)


@pytest.mark.parametrize("nbytes", [0, -4, 6])
def test_sizes_that_no_buffer_has_are_refused(npu: NpuDevice, nbytes: int) -> None:
    with pytest.raises(BufferSizeError), npu.lend(nbytes):
        pass


def test_the_pool_is_bounded_and_drops_the_oldest(npu: NpuDevice) -> None:
    pool = BufferPool(limit_bytes=3 * 64)
    buffers = [npu.alloc(64) for _ in range(4)]
    for buffer in buffers:
        pool.give(buffer)
    assert pool.nbytes == 3 * 64
    assert [pool.take(64) for _ in range(4)] == [*reversed(buffers[1:]), None]
    pool.give(buffers[0])
    pool.give(npu.alloc(4 * 64))  # never fits, and drops no other
    assert pool.nbytes == 64
    pool.give(npu.alloc(3 * 64))  # just fits, alone
    assert pool.nbytes == 3 * 64 and pool.take(64) is None
    pool.give(buffers[0])
    assert pool.take(60) is pool.take(68) is None


def test_a_closed_device_keeps_nothing() -> None:
    npu = EmulatedDevice()
    with npu.lend(64):
        pass
    assert npu._pool.nbytes > 0
    npu.close()
    assert npu._pool.nbytes == 0


@given(st.integers(1, 1 << 40).map(lambda words: 4 * words))
def test_a_lent_buffer_is_little_larger_than_asked_for(nbytes: int) -> None:
    size = pool_size(nbytes)
    assert size % 4096 == 0
    assert nbytes <= size <= nbytes + max(4096, nbytes // 8)
    assert pool_size(size) == size


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_a_call_with_packed_weights_allocates_nothing_for_them(
    precision: str | None, strategy: str
) -> None:
    npu = EmulatedDevice()
    b, terms = random_int8(1, 200, 300), PRECISIONS[precision].terms if precision else 1
    weights = pack_b(b, device=npu, precision=precision)
    assert weights.kernel is not None
    grid = TileGrid(weights.kernel, 3, 200, 300, terms)
    assert npu.totals.allocated_bytes == grid.b_bytes
    kind = np.int8 if precision is None else np.float32
    npu_matmul(random_int8(2, 3, 200).astype(kind), weights, strategy=strategy)
    first = last_call()
    assert first.allocations == 2
    assert first.allocated_bytes <= pool_size(grid.a_bytes) + pool_size(grid.c_bytes)
    for rows in (3, 2):
        npu_matmul(random_int8(2, rows, 200).astype(kind), weights, strategy=strategy)
        assert last_call().allocations == last_call().allocated_bytes == 0


def test_nor_does_the_host(npu: NpuDevice) -> None:
    """Four times the weights, and no more memory: what there is holds elements on their way."""
    peaks = [_peak_bytes(npu, depth) for depth in (512, 2048)]
    assert peaks[1] < peaks[0] + (2048 - 512) * 1024 // 8


def _peak_bytes(npu: NpuDevice, depth: int) -> int:
    """What Python and NumPy allocate at most at one time, in a second call with packed weights."""
    weights = pack_b(random_int8(1, depth, 1024), device=npu)
    a = random_int8(2, 2, depth)
    return peak_bytes(lambda: npu_matmul(a, weights))


def test_threads_share_the_pool_and_never_a_buffer() -> None:
    npu = EmulatedDevice()
    operands = [(random_int8(i, 20, 30), random_int8(50 + i, 30, 40)) for i in range(12)]

    def work(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(3):
            got = npu_matmul(*pair, device=npu, dtype=np.int32, kernel=load_kernel("matmul_16x16"))
            assert_equal_bits(got, product_int32(*pair))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, operands))
    assert npu.totals.allocations <= 2 * 4
