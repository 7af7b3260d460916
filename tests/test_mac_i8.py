"""Both models of the int8 multiply-accumulate, on blocks of many shapes, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8
from numpy.typing import NDArray

from npu_matmul.emulator import mac_i8
from npu_matmul.host import blocked
from npu_matmul.host.paths import PATH_VARIABLE, usable_paths
from npu_matmul.kernel import Mmul, TileShape

HAS_VNNI = usable_paths("int8")[0].name == "avx512vnni"
needs_vnni = pytest.mark.skipif(not HAS_VNNI, reason="this CPU lacks AVX-512 VNNI")
WAYS = [
    *(pytest.param("loops", r, id=f"loops, {r}") for r in (1, 2, 4, 8)),
    *(pytest.param("vnni", r, id=f"vnni, {r}", marks=needs_vnni) for r in blocked.ROWS),
]


def multiply(way: str, a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], accumulate: bool) -> None:
    if way == "loops":
        mac_i8.matmul_i8(a, b, c, accumulate)
    else:
        down, across, r, _ = c.shape
        flat = a.ravel(), b.ravel(), c.reshape(-1)
        mac_i8.vnni(r)(*flat, down, b.shape[0], across, accumulate)


def blocks(x: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(rows, columns) as (blocks down, blocks across, height, width), a copy."""
    rows, columns = x.shape
    parts = x.reshape(rows // height, height, columns // width, width)
    return np.array(parts.transpose(0, 2, 1, 3), order="C")


@pytest.mark.parametrize(("way", "r"), WAYS)
def test_both_models_give_numpys_sums(way: str, r: int) -> None:
    for m, k, n in [
        (r, 8, 8),
        (16, 16, 16),
        (64, 64, 128),
        (8, 24, 40),
        (32, 8, 72),
        (128, 64, 64),
        (72, 16, 32),  # rows of blocks that no call's share divides
    ]:
        a, b = random_int8(m + r, m, k), random_int8(n, k, n)
        before = np.random.default_rng(k).integers(-(2**31), 2**31, (m, n), dtype=np.int32)
        for accumulate in (False, True):
            c = blocks(before, r, 8)
            multiply(way, blocks(a, r, 8), blocks(b, 8, 8), c, accumulate)
            want = product_int32(a, b) + (before if accumulate else 0)  # modulo 2**32
            assert_equal_bits(c, blocks(want.astype(np.int32), r, 8))


@pytest.mark.parametrize(("way", "r"), WAYS)
def test_extreme_values_are_exact(way: str, r: int) -> None:
    for x, y in [(-128, -128), (-128, 127), (127, 127)]:
        a, b = np.full((8, 64), x, np.int8), np.full((64, 16), y, np.int8)
        a[3, 5], b[7, 2] = 1, -1
        c = np.zeros((8 // r, 2, r, 8), np.int32)
        multiply(way, blocks(a, r, 8), blocks(b, 8, 8), c, False)
        assert_equal_bits(c, blocks(product_int32(a, b), r, 8))


@needs_vnni
def test_the_fast_model_is_for_blocks_of_eight_and_cpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    for r, s, t in ((2, 8, 8), (4, 8, 8), (8, 8, 8)):
        assert mac_i8.is_fast(Mmul(r, s, t))
    for r, s, t in ((1, 8, 8), (4, 16, 8), (4, 8, 4)):
        assert not mac_i8.is_fast(Mmul(r, s, t))
    monkeypatch.setenv(PATH_VARIABLE, "avx2")
    assert not mac_i8.is_fast(Mmul(4, 8, 8))


@pytest.mark.parametrize("path", [path.name for path in usable_paths("int8")])
@pytest.mark.parametrize("wrong", ["a", "b", "c"])
def test_a_tile_of_another_size_is_refused(
    wrong: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATH_VARIABLE, path)
    model = mac_i8.model(TileShape(16, 16, 16), Mmul(4, 8, 8), True)
    sizes = dict.fromkeys("abc", 256)
    kinds = {"a": np.int8, "b": np.int8, "c": np.int32}
    model(*(np.zeros(sizes[name], kinds[name]) for name in "abc"))
    for size in (128, 512):
        sizes[wrong] = size
        with pytest.raises(ValueError, match="size"):
            model(*(np.zeros(sizes[name], kinds[name]) for name in "abc"))
