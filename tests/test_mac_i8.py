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
from npu_matmul.kernel import Mmul

HAS_VNNI = usable_paths("int8")[0].name == "avx512vnni"
needs_vnni = pytest.mark.skipif(not HAS_VNNI, reason="this CPU lacks AVX-512 VNNI")
MODELS = [
    *(pytest.param(mac_i8.matmul_i8, r, id=f"loops, {r}") for r in (1, 2, 4, 8)),
    *(
        pytest.param(blocked.multiplier(r), r, id=f"vnni, {r}", marks=needs_vnni)
        for r in blocked.ROWS
    ),
]


def blocks(x: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(rows, columns) as (blocks down, blocks across, height, width), a copy."""
    rows, columns = x.shape
    parts = x.reshape(rows // height, height, columns // width, width)
    return np.array(parts.transpose(0, 2, 1, 3), order="C")


@pytest.mark.parametrize(("model", "r"), MODELS)
def test_both_models_give_numpys_sums(model: Any, r: int) -> None:
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
            model(blocks(a, r, 8), blocks(b, 8, 8), c, accumulate)
            want = product_int32(a, b) + (before if accumulate else 0)  # modulo 2**32
            assert_equal_bits(c, blocks(want.astype(np.int32), r, 8))


@pytest.mark.parametrize(("model", "r"), MODELS)
def test_extreme_values_are_exact(model: Any, r: int) -> None:
    for x, y in [(-128, -128), (-128, 127), (127, 127)]:
        a, b = np.full((8, 64), x, np.int8), np.full((64, 16), y, np.int8)
        a[3, 5], b[7, 2] = 1, -1
        c = np.zeros((8 // r, 2, r, 8), np.int32)
        model(blocks(a, r, 8), blocks(b, 8, 8), c, False)
        assert_equal_bits(c, blocks(product_int32(a, b), r, 8))


@needs_vnni
def test_the_fast_model_is_for_blocks_of_eight_and_cpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    assert mac_i8.product(Mmul(4, 8, 8)) is mac_i8.vnni(4)
    assert mac_i8.product(Mmul(8, 8, 8)) is mac_i8.vnni(8)
    assert mac_i8.product(Mmul(1, 8, 8)) is mac_i8.matmul_i8
    assert mac_i8.product(Mmul(4, 16, 8)) is mac_i8.matmul_i8
    assert mac_i8.product(Mmul(4, 8, 4)) is mac_i8.matmul_i8
    monkeypatch.setenv(PATH_VARIABLE, "avx2")
    assert mac_i8.product(Mmul(4, 8, 8)) is mac_i8.matmul_i8
