"""The kernel that is chosen fits types and target and is modelled to take least; the reason says
so."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits, product_int32, random_int8

from npu_matmul import choose, last_call, npu_matmul, pack_b
from npu_matmul.choose import choose_kernel
from npu_matmul.device.emulated import EmulatedDevice
from npu_matmul.kernel import NoKernel, UnknownKernel, load_kernel
from npu_matmul.performance.product import Npu, Prediction
from npu_matmul.schedule import LimitError
from npu_matmul.target import NPU1, NPU2
from npu_matmul.tiler import TileGrid

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
    with pytest.raises(NoKernel) as caught:
        choose_kernel(None, BF16, (8, 8, 8), NPU2)
    assert str(caught.value) == (
        "no kernel for bfloat16 operands on npu2 was found; there are kernels for npu1: name a "
        "folder that has one in $NPU_MATMUL_KERNELS, or use device='cpu'"
    )


def test_a_kernel_of_other_types_is_refused_by_name_and_as_an_object() -> None:
    with pytest.raises(UnknownKernel, match=r"'matmul_16x16' has nothing for bf.* for another"):
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


def test_the_reason_gives_the_modelled_times_of_all() -> None:
    chosen, why = choose_kernel(None, INT8, (1500, 512, 512))
    assert chosen.name == "matmul_64x512"
    assert why == "least modelled time, 0.438 ms; matmul_16x16 16.6 ms"
    chosen, why = choose_kernel(None, INT8, (1500, 512, 512), strategy="sequential")
    assert chosen.name == "matmul_64x512"
    assert why == "least modelled time, 10.4 ms; matmul_16x16 15.56 s"


def test_a_kernel_whose_smallest_launch_is_beyond_the_limits_comes_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = choose.predict

    def predict(grid: TileGrid, strategy: str, npu: Npu) -> Prediction:
        if grid.kernel.name == "matmul_64x512":
            raise LimitError
        return real(grid, strategy, npu)

    monkeypatch.setattr(choose, "predict", predict)
    assert choose_kernel(None, INT8, (1500, 512, 512))[0].name == "matmul_16x16"


def test_the_model_is_asked_once_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    device, asked = EmulatedDevice(), []
    real = choose.predict

    def predict(grid: TileGrid, *rest: Any) -> Prediction:
        asked.append(grid)
        return real(grid, *rest)

    monkeypatch.setattr(choose, "predict", predict)
    first = choose.choose(device, INT8, (64, 64, 64))
    assert len({grid.kernel for grid in asked}) == 2
    asked.clear()
    assert choose.choose(device, INT8, (64, 64, 64)) is first
    assert not asked
    assert choose.choose(device, INT8, (64, 64, 64), strategy="output_tile") is not first
    assert choose.choose(EmulatedDevice(), INT8, (64, 64, 64)) is not first


def test_choices_are_kept_for_so_many_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "CHOICES_KEPT", 2)
    device = EmulatedDevice()
    for rows in range(1, 6):
        last = choose.choose(device, INT8, (rows, 16, 16))
        assert len(device.choices) <= 2
    assert choose.choose(device, INT8, (5, 16, 16)) is last


def test_a_changed_manifest_is_seen_by_the_next_call(folder: Path) -> None:
    """Also in place, where the folder does not change; and a new kernel beside it."""
    device = EmulatedDevice()

    def chosen() -> tuple[str, int]:
        kernel = choose.choose(device, INT8, (24, 24, 24)).kernel
        return kernel.name, kernel.tile.m

    assert chosen() == ("matmul_16x16", 16)
    (folder / "late").mkdir()
    assert chosen() == ("matmul_16x16", 16)
    (folder / "late" / "matmul_i8.cc").write_text("")
    manifest = folder / "late" / "kernel.toml"
    manifest.write_text(MANIFEST.replace("= 16", "= 24"))
    assert chosen() == ("late", 24)
    manifest.write_text(MANIFEST.replace("= 16", "= 32"))
    assert chosen() == ("late", 32)
    manifest.unlink()
    assert chosen() == ("matmul_16x16", 16)


def test_a_kernel_that_is_built_later_is_taken_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also for a shape that was computed before, by another kernel; and the reason says what is
    missed until then."""
    device, asked = EmulatedDevice(), []
    built: set[str] = set()
    monkeypatch.setattr(
        device, "can_load", lambda kernel: asked.append(kernel.name) or kernel.name in built
    )

    def chosen() -> tuple[str, str]:
        choice = choose.choose(device, INT8, (1500, 512, 512))
        return choice.kernel.name, choice.why

    assert chosen()[0] == "matmul_64x512"  # which loading will say is not built
    built.add("matmul_16x16")
    for _ in range(2):
        assert chosen() == (
            "matmul_16x16",
            "the only one that can be loaded, 16.6 ms; not built: matmul_64x512 0.438 ms",
        )
    built.add("matmul_64x512")
    assert chosen() == ("matmul_64x512", "least modelled time, 0.438 ms; matmul_16x16 16.6 ms")
    asked.clear()
    assert chosen()[0] == "matmul_64x512"
    assert not asked  # nothing is faster


def test_of_kernels_that_are_not_built_only_faster_ones_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = EmulatedDevice()
    monkeypatch.setattr(device, "can_load", lambda kernel: kernel.name == "matmul_64x512")
    choice = choose.choose(device, INT8, (1500, 512, 512))
    assert (choice.why, choice.faster) == ("the only one that can be loaded, 0.438 ms", ())


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
