"""The kernel that is chosen fits types and target, and has the least to do; the reason says so."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8

from npu_matmul import choose, last_call, npu_matmul, pack_b
from npu_matmul.choose import choose_kernel
from npu_matmul.kernel import UnknownKernel, load_kernel
from npu_matmul.target import NPU1, NPU2

INT8 = "int8", "int8", "int32"
BF16 = "bfloat16", "bfloat16", "float32"
MANIFEST = (load_kernel("matmul_16x16").source.parent / "kernel.toml").read_text("utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where further kernels are found."""
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "kernel.toml").write_text(text)
    (folder / name / "matmul_i8.cc").write_text("")


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(choose).failed == 0


def test_only_kernels_for_the_target_are_chosen(folder: Path) -> None:
    write(folder, "strix", MANIFEST.replace('"npu1"', '"npu2"').replace("= 16", "= 8"))
    assert choose_kernel(None, INT8, (8, 8, 8))[0].name == "matmul_16x16"
    chosen, why = choose_kernel(None, INT8, (8, 8, 8), NPU2)
    assert (chosen.name, why) == ("strix", "the only one for int8 operands")
    with pytest.raises(UnknownKernel) as caught:
        choose_kernel("strix", INT8, (8, 8, 8), NPU1)
    assert str(caught.value) == (
        "kernel 'strix' has nothing for int8 operands on npu1; it is for int8 on npu2"
    )
    with pytest.raises(UnknownKernel, match="no kernel for bfloat16 operands on npu2 was found"):
        choose_kernel(None, BF16, (8, 8, 8), NPU2)


def test_a_kernel_of_other_types_is_refused_by_name_and_as_an_object() -> None:
    with pytest.raises(UnknownKernel, match=r"'matmul_16x16' has nothing for bfloat16 .* for int8"):
        choose_kernel("matmul_16x16", BF16, (8, 8, 8))
    kernel = load_kernel("matmul_64x512", "bf16")
    with pytest.raises(UnknownKernel, match=r"'matmul_64x512', variant 'bf16': has nothing for i"):
        choose_kernel(kernel, INT8, (8, 8, 8))
    assert choose_kernel(kernel, BF16, (8, 8, 8)) == (kernel, "as asked")
    assert choose_kernel("matmul_64x512", BF16, (8, 8, 8)) == (kernel, "as asked")


def test_every_variant_is_a_candidate(folder: Path) -> None:
    table = MANIFEST[MANIFEST.index("[variants.int8]") :].replace("variants.int8", "variants.small")
    write(folder, "two", MANIFEST.replace("= 16", "= 32") + table.replace("= 16", "= 8"))
    assert choose_kernel(None, INT8, (8, 8, 8))[0].variant == "small"


def test_equal_work_goes_to_the_one_with_fewer_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = 16, 512, 512  # 16 rows of 512 columns are as much as 64 of 128
    launches = {"matmul_16x16": [1, 2], "matmul_64x512": [1]}
    monkeypatch.setattr(choose, "cover", lambda grid: launches[grid.kernel.name])
    chosen, why = choose_kernel(None, INT8, problem)
    assert chosen.name == "matmul_64x512"
    assert why == "least padded work per core of 2, then fewest launches"
    launches["matmul_16x16"] = []
    assert choose_kernel(None, INT8, problem)[0].name == "matmul_16x16"
    assert choose_kernel(None, INT8, (1500, 512, 512))[1] == "least padded work per core of 2"


def test_weights_are_packed_for_a_large_a() -> None:
    """One core would have to do alone what sixteen can."""
    a, b = random_int8(1, 300, 64), random_int8(2, 64, 600)
    packed = pack_b(b, device="emulated")
    got = npu_matmul(a, packed, dtype=np.int32)
    assert_equal_bits(got, product_int32(a, b))
    assert last_call().kernel == "matmul_64x512"
    npu_matmul(a, b, device="emulated")
    assert last_call().kernel == "matmul_64x512"
    assert pack_b(b[:, :16], device="emulated").kernel == load_kernel("matmul_16x16")
