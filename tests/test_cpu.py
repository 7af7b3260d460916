"""The CPU as a device: each path, floats converted on the way, several threads at once."""

from __future__ import annotations

import doctest
import threading
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, peak_bytes, product_int32, random_int8
from host_paths import paths_for
from numpy.typing import NDArray

from npu_matmul import last_call, npu_matmul, pack_b
from npu_matmul.device import cpu as cpu_module
from npu_matmul.device.cpu import EXACT_STEPS, CpuDevice
from npu_matmul.host.paths import PATH_VARIABLE, PORTABLE
from npu_matmul.host.threads import THREADS_VARIABLE
from npu_matmul.precision import BF16, EXACT, PRECISIONS, Precision

FLOAT32 = np.dtype(np.float32)


@pytest.fixture(params=paths_for("int8"))
def int8(request: pytest.FixtureRequest) -> CpuDevice:
    cpu = CpuDevice()
    cpu.paths["int8"] = request.param
    return cpu


@pytest.fixture(params=paths_for("bfloat16"))
def bf16(request: pytest.FixtureRequest) -> CpuDevice:
    cpu = CpuDevice()
    cpu.paths["bfloat16"] = request.param
    return cpu


def floats(seed: int, *shape: int) -> NDArray[np.float32]:
    """Normal numbers whose rows differ in size by powers of ten."""
    random = np.random.default_rng(seed)
    rows = 10.0 ** random.integers(-3, 4, (shape[0], 1))
    return (random.standard_normal(shape) * rows).astype(np.float32)


def by_steps(a: NDArray[Any], b: NDArray[Any], how: Precision) -> NDArray[np.float64]:
    """The product of the converted operands in float64, scaled back: what any order of sums
    approaches."""
    left, right = how.a(a), how.b(b)
    sums = left.matrix.astype(np.float64) @ right.matrix.astype(np.float64)
    if left.scale is not None and right.scale is not None:
        sums = sums * left.scale.astype(np.float64) * right.scale.astype(np.float64)
    return np.asarray(sums)


@pytest.mark.parametrize("k", [0, 1, EXACT_STEPS - 1, EXACT_STEPS, EXACT_STEPS + 1, 2047, 5001])
def test_every_path_is_exact_for_any_k(int8: CpuDevice, k: int) -> None:
    """An odd number of 127 * 127 is odd: beyond 2**24 float32 would round it."""
    a, b = random_int8(k, 5, k), random_int8(k + 1, k, 7)
    a[:2], b[:, 0] = -128, -128
    a[2], b[:, 1] = 127, 127
    packed, want = int8.pack(EXACT.b(b)), product_int32(a, b)
    for left in (a, np.asfortranarray(a)):
        got, summed = int8.multiply(left, packed, EXACT, np.dtype(np.int32))
        assert_equal_bits(got, want)
        assert summed == f"INT32, exact ({int8.paths['int8'].name})"
        clipped, _ = int8.multiply(left, packed, EXACT, np.dtype(np.int8))
        assert_equal_bits(clipped, np.clip(want, -128, 127).astype(np.int8))


def test_quantised_products_have_the_same_bits_by_every_path(int8: CpuDevice) -> None:
    """INT32 sums are exact, and scaled back in one order of float32 operations."""
    how = PRECISIONS["int8"]
    for m, k, n in [(1, 1, 1), (7, 13, 37), (100, 65, 33)]:
        a, b = floats(m, m, k), floats(n, k, n)
        a[m // 2] = 0
        whole = np.clip(np.rint(a), -128, 127).astype(np.int8)
        for left in (a, np.asfortranarray(a), a.astype(np.float16), a.astype(BF16), whole):
            first, second = how.a(left), how.b(b)
            want = product_int32(first.matrix, second.matrix).astype(np.float32)
            want = want * first.scale * second.scale
            got, _ = int8.multiply(left, int8.pack(second), how, FLOAT32)
            assert_equal_bits(got, want)


@pytest.mark.parametrize("name", ["bf16", "bf16x3"])
def test_float_products_have_the_same_bits_in_any_memory_layout(bf16: CpuDevice, name: str) -> None:
    how = PRECISIONS[name]
    for seed, (m, k, n) in enumerate([(135, 31, 1), (40, 130, 33), (3, 700, 64)]):
        for kind in (FLOAT32, BF16):
            a, b = floats(seed, m, k).astype(kind), floats(seed + 1, k, n).astype(kind)
            want, _ = bf16.multiply(a, bf16.pack(how.b(b)), how, FLOAT32)
            packed = bf16.pack(how.b(np.asfortranarray(b)))
            got, _ = bf16.multiply(np.asfortranarray(a), packed, how, FLOAT32)
            assert_equal_bits(got, want)


@pytest.mark.parametrize("size", [1e-44, 1e-25, 1e25])
def test_rows_beyond_float32s_means_are_quantised_all_the_same(
    int8: CpuDevice, size: float
) -> None:
    how, a, b = PRECISIONS["int8"], floats(1, 20, 30), floats(2, 30, 10)
    a[11] *= np.float32(size) / np.abs(a[11]).max()
    got, _ = int8.multiply(a, int8.pack(how.b(b)), how, FLOAT32)
    want = by_steps(a, b, how)
    assert np.allclose(got, want, rtol=1e-6, atol=1e-45)


@pytest.mark.parametrize("name", ["bf16", "bf16x3"])
def test_floats_keep_to_the_bound_by_every_path(bf16: CpuDevice, name: str) -> None:
    """2e-6 sqrt(K) of the float64 product of the converted operands."""
    how = PRECISIONS[name]
    for m, k, n in [(1, 1, 1), (7, 13, 37), (100, 512, 33), (5, 2049, 3)]:
        a, b = floats(m, m, k), floats(n, k, n)
        packed = bf16.pack(how.b(b))
        for left in (a, np.asfortranarray(a), a.astype(np.float16), a.astype(BF16), a.astype("f8")):
            with np.errstate(over="ignore"):
                want = by_steps(left, b, how)
            got, summed = bf16.multiply(left, packed, how, FLOAT32)
            bound = 2e-6 * np.sqrt(how.terms * k)
            error = np.linalg.norm(got - want, axis=1)  # by row, as rows differ in size
            assert (error <= bound * np.linalg.norm(want, axis=1)).all()
            assert summed == f"f32 ({bf16.paths['bfloat16'].name})"


def test_subnormal_bf16_counts_by_every_path(bf16: CpuDevice) -> None:
    """2**-130 times 2**120 is no small number, though an instruction may take the first for 0."""
    how, tiny, huge = PRECISIONS["bf16"], np.float32(2.0**-130), np.float32(2.0**120)
    a, b = np.full((3, 8), huge), np.ones((8, 5), np.float32)
    a[1] = 1
    b[4, 2] = tiny
    got, summed = bf16.multiply(a, bf16.pack(how.b(b)), how, FLOAT32)
    assert_equal_bits(got, np.asarray(by_steps(a, b, how), np.float32))
    assert summed == "f32 (portable)"
    got, summed = bf16.multiply(b.T, bf16.pack(how.b(a.T)), how, FLOAT32)
    assert_equal_bits(got, np.asarray(by_steps(b.T, a.T, how), np.float32))
    assert summed in ("f32 (portable)", "f32 (avx512bf16; portable for 1 of 5 rows)")


@pytest.mark.parametrize("name", ["bf16", "bf16x3"])
@pytest.mark.parametrize("kind", [np.float32, BF16])
def test_rows_with_subnormal_bf16_do_not_change_the_others(
    bf16: CpuDevice, monkeypatch: pytest.MonkeyPatch, name: str, kind: Any
) -> None:
    """Rows of both parts of two threads, and neighbours."""
    monkeypatch.setenv(THREADS_VARIABLE, "2")
    how, rows = PRECISIONS[name], [0, 250, 251, 299]
    a, b = np.ones((300, 400), np.float32), floats(2, 400, 500)
    a[:] = np.random.default_rng(1).standard_normal(a.shape)
    b[-1] = 2.0**120
    a[:, -1], a[rows, -1] = 0, 2.0**-130
    weights = bf16.pack(how.b(b))
    got, summed = bf16.multiply(a.astype(kind), weights, how, FLOAT32)
    want = by_steps(a.astype(kind), b, how)
    assert np.abs(got - want).max() <= 2e-6 * np.sqrt(how.terms * 400) * np.abs(want).max()
    others = np.setdiff1d(np.arange(300), rows)
    a[:, -1] = 0
    without, path = bf16.multiply(a.astype(kind), weights, how, FLOAT32)
    assert_equal_bits(got[others], without[others])
    assert not np.allclose(got[rows], without[rows], rtol=1e-6)
    if "portable" not in path:
        assert summed == f"{path[:-1]}; portable for 4 of 300 rows)"


@pytest.mark.parametrize("precision", [None, "bf16", "bf16x3", "int8"])
def test_every_result_type_and_out(precision: str | None) -> None:
    exact = precision is None
    a = random_int8(1, 40, 33) if exact else floats(1, 40, 33)
    b = random_int8(2, 33, 20) if exact else floats(2, 33, 20)
    weights = pack_b(b, device="cpu", precision=precision)
    types = (np.int8, np.int32) if exact else (np.float16, BF16, np.float32, np.float64)
    for dtype in types:
        want = npu_matmul(a, weights, dtype=dtype)
        assert want.dtype == dtype
        for out in (np.full((40, 20), 7, dtype), np.full((20, 40), 7, dtype).T):
            assert npu_matmul(a, weights, out=out, dtype=dtype) is out
            assert_equal_bits(np.ascontiguousarray(out), want)
        assert_equal_bits(npu_matmul(a, b, dtype=dtype, precision=precision, device="cpu"), want)


def test_an_out_that_is_also_a_is_written_last() -> None:
    square, b = floats(1, 30, 30), floats(2, 30, 30)
    want = npu_matmul(square, b, precision="int8", device="cpu")
    npu_matmul(square, b, precision="int8", device="cpu", out=square)
    assert_equal_bits(square, want)


@pytest.mark.parametrize("path", [None, PORTABLE])
@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        (None, np.int8),
        *((name, np.float32) for name in PRECISIONS),
        *((name, BF16) for name in PRECISIONS),
    ],
)
def test_a_call_with_packed_weights_allocates_nothing_for_them(
    monkeypatch: pytest.MonkeyPatch, precision: str | None, kind: Any, path: str | None
) -> None:
    """Four times the weights, and no more memory than the two rows of A need, of which the last
    has an element that is subnormal as bf16."""
    if path is not None:
        monkeypatch.setenv(PATH_VARIABLE, path)
    peaks = [_peak_bytes(CpuDevice(), depth, precision, kind) for depth in (512, 2048)]
    assert peaks[1] < peaks[0] + (2048 - 512) * 1024 // 8


def _peak_bytes(cpu: CpuDevice, depth: int, precision: str | None, kind: Any) -> int:
    """What Python and NumPy allocate at most at one time, in a second call with packed weights."""
    weights = pack_b(random_int8(1, depth, 1024).astype(kind), device=cpu, precision=precision)
    a = random_int8(2, 2, depth).astype(kind)
    if kind != np.int8:
        a[1, 1] = 2.0**-130
    return peak_bytes(lambda: npu_matmul(a, weights))


def test_several_threads_at_once_get_their_own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the size that is worth threads of the pool, and below."""
    monkeypatch.setenv(THREADS_VARIABLE, "2")
    large, small = random_int8(1, 512, 512), random_int8(2, 24, 24)
    weights = pack_b(large, device="cpu"), pack_b(small, device="cpu")
    mistakes: list[str] = []

    def work(seed: int) -> None:
        for _ in range(6):
            for b, packed in zip((large, small), weights, strict=True):
                a = random_int8(seed, 200, b.shape[0])
                got = npu_matmul(a, packed, dtype=np.int32)
                if not np.array_equal(got, wanted[seed, b.shape[0]]):
                    mistakes.append(f"thread {seed}, K = {b.shape[0]}")
                if last_call().device != "cpu":
                    mistakes.append("report")

    wanted = {
        (seed, b.shape[0]): product_int32(random_int8(seed, 200, b.shape[0]), b)
        for seed in range(4)
        for b in (large, small)
    }
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mistakes


def test_the_variable_chooses_the_path_of_a_new_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, "portable")
    a = random_int8(1, 5, 5)
    npu_matmul(a, a, device=CpuDevice())
    assert last_call().arithmetic == "INT32, exact (portable)"
    monkeypatch.setenv(PATH_VARIABLE, "abacus")
    with pytest.raises(ValueError, match="'abacus'"):
        CpuDevice()


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(cpu_module).failed == 0
