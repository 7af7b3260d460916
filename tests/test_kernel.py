"""Manifests: the shipped ones load, and a malformed one is refused with file, key and cure."""

from __future__ import annotations

import dataclasses
import doctest
import os
from pathlib import Path

import numpy as np
import pytest

from npu_matmul import kernel as kernel_module
from npu_matmul.kernel import (
    MANIFEST,
    Blocking,
    CoreGrid,
    Kernel,
    KernelNotBuilt,
    ManifestError,
    TileShape,
    UnknownKernel,
    kernel_folders,
    load_kernel,
    load_variants,
    read_manifest,
)

GOOD = """\
summary = "a test kernel"
targets = ["npu1"]

[variants.int8]
types = { a = "int8", b = "int8", c = "int32" }
tile = { m = 8, k = 16, n = 24 }
mmul = { r = 4, s = 8, t = 8 }
grid = { rows = 1, columns = 2 }
depths = { a = 2, b = 3, c = 1 }
stack_bytes = 1024
symbols = { first = "first_i8", next = "next_i8" }
source = "core.cc"
"""
VARIANT_KEYS = ["types", "tile", "mmul", "grid", "depths", "stack_bytes", "symbols", "source"]


def write_kernel(place: Path, name: str = "mine", text: str = GOOD, source: bool = True) -> Path:
    folder = place / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    if source:
        (folder / "core.cc").write_text("")
    return folder / MANIFEST


def without(key: str) -> str:
    """The good manifest less the line that sets ``key``."""
    return "".join(line for line in GOOD.splitlines(True) if not line.startswith(f"{key} ="))


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(kernel_module).failed == 0


def test_every_shipped_manifest_loads() -> None:
    shipped = {name: list(load_variants(name)) for name in kernel_folders()}
    assert shipped["matmul_16x16"] == ["int8"]
    assert shipped["matmul_64x512"] == ["int8", "bf16"]


def test_every_field_of_a_manifest_arrives(tmp_path: Path) -> None:
    kernel = read_manifest(write_kernel(tmp_path))["int8"]
    assert dataclasses.asdict(kernel) == {
        "name": "mine",
        "variant": "int8",
        "summary": "a test kernel",
        "targets": ("npu1",),
        "types": {"a": "int8", "b": "int8", "c": "int32"},
        "tile": {"m": 8, "k": 16, "n": 24},
        "mmul": {"r": 4, "s": 8, "t": 8},
        "grid": {"rows": 1, "columns": 2},
        "depths": {"a": 2, "b": 3, "c": 1},
        "stack_bytes": 1024,
        "symbols": {"first": "first_i8", "next": "next_i8"},
        "source": tmp_path / "mine" / "core.cc",
        "blocking": {"m": 1, "n": 1},
    }
    text = GOOD.replace("[variants.int8]", "[variants.int8]\nblocking = { m = 2, n = 3 }")
    assert read_manifest(write_kernel(tmp_path, text=text))["int8"].blocking == Blocking(2, 3)


@pytest.mark.parametrize(
    ("name", "variant", "tile_bytes", "block", "defines"),
    [
        ("matmul_16x16", "int8", (256, 256, 1024), (16, 16), (16, 16, 16)),
        ("matmul_64x512", "int8", (4096, 8192, 32768), (256, 512), (64, 64, 128)),
        ("matmul_64x512", "bf16", (4096, 8192, 32768), (256, 512), (64, 32, 128)),
    ],
)
def test_sizes_follow_from_the_manifest(
    name: str,
    variant: str,
    tile_bytes: tuple[int, int, int],
    block: tuple[int, int],
    defines: tuple[int, int, int],
) -> None:
    kernel = load_kernel(name, variant)
    assert (kernel.a_tile_bytes, kernel.b_tile_bytes, kernel.c_tile_bytes) == tile_bytes
    assert kernel.block == block
    assert kernel.defines == dict(zip(("DIM_M", "DIM_K", "DIM_N"), defines, strict=True))


def test_no_two_sizes_are_mixed_up(tmp_path: Path) -> None:
    kernel = read_manifest(write_kernel(tmp_path))["int8"]
    assert (kernel.a_tile_bytes, kernel.b_tile_bytes, kernel.c_tile_bytes) == (128, 384, 768)
    assert kernel.block == (8, 48)
    assert kernel.defines == {"DIM_M": 8, "DIM_K": 16, "DIM_N": 24}
    assert kernel.a_dtype == kernel.b_dtype == np.int8
    assert kernel.c_dtype == np.int32


MALFORMED = {
    "not TOML": (GOOD + "=", ["not valid TOML"]),
    "unknown key": ('author = "me"\n' + GOOD, ["'author'", "summary, targets, variants"]),
    "no summary": (without("summary"), ["summary is missing", "str"]),
    "summary of a wrong type": (GOOD.replace('"a test kernel"', "3"), ["summary is 3", "str"]),
    "no targets": (without("targets"), ["targets is missing", "list"]),
    "empty targets": (GOOD.replace('["npu1"]', "[]"), ["at least one target"]),
    "a target of a wrong type": (GOOD.replace('["npu1"]', "[1]"), ["targets is 1", "str"]),
    "an unknown target": (
        GOOD.replace('["npu1"]', '["npu1", "npu9"]'),
        ["targets", "'npu9'", "npu1"],
    ),
    "no variants": ('summary = "a"\ntargets = ["npu1"]', ["variants is missing"]),
    "empty variants": ('summary = "a"\ntargets = ["npu1"]\n[variants]', ["[variants.NAME]"]),
    "variant of a wrong type": (
        'summary = "a"\ntargets = ["npu1"]\n[variants]\nint8 = 1',
        ["variants.int8 is 1", "dict"],
    ),
    "unknown key of a variant": (GOOD + "cores = 3", ["variants.int8", "'cores'", "stack_bytes"]),
    "unknown key of a part": (
        GOOD.replace("n = 24", "n = 24, p = 1"),
        ["variants.int8.tile", "'p'", "m, k, n"],
    ),
    "missing key of a part": (
        GOOD.replace(", n = 24", ""),
        ["variants.int8.tile", "'n'", "m, k, n"],
    ),
    "part of a wrong type": (
        GOOD.replace("{ m = 8, k = 16, n = 24 }", "8"),
        ["variants.int8.tile is 8", "dict"],
    ),
    "zero": (GOOD.replace("m = 8", "m = 0"), ["variants.int8.tile.m is 0", "positive"]),
    "negative": (GOOD.replace("b = 3", "b = -3"), ["variants.int8.depths.b is -3", "positive"]),
    "not whole": (GOOD.replace("m = 8", "m = 8.0"), ["variants.int8.tile.m is 8.0", "int"]),
    "truth for a number": (GOOD.replace("c = 1 ", "c = true "), ["depths.c is True", "int"]),
    "text for a number": (GOOD.replace("1024", '"1024"'), ["stack_bytes is '1024'", "int"]),
    "number for text": (GOOD.replace('"core.cc"', "1"), ["variants.int8.source is 1", "str"]),
    "unknown element type": (GOOD.replace('"int32"', '"int64"'), ["types.c", "'int64'", "int32"]),
    "m not in blocks": (GOOD.replace("m = 8", "m = 6"), ["variants.int8", "m = 6", "r = 4"]),
    "k not in blocks": (GOOD.replace("k = 16", "k = 12"), ["variants.int8", "k = 12", "s = 8"]),
    "n not in blocks": (GOOD.replace("n = 24", "n = 20"), ["variants.int8", "n = 20", "t = 8"]),
    "symbol not of C": (
        GOOD.replace('"next_i8"', '"next-i8"'),
        ["symbols.next", "'next-i8'", "C identifier"],
    ),
    "symbols alike": (
        GOOD.replace('"next_i8"', '"first_i8"'),
        ["variants.int8.symbols", "both 'first_i8'"],
    ),
    "crooked stack": (GOOD.replace("1024", "1040"), ["stack_bytes is 1040", "multiple of 32"]),
    "more core rows than columns": (
        GOOD.replace("rows = 1", "rows = 3"),
        ["variants.int8.grid", "rows = 3", "columns = 2"],
    ),
    "more columns than the target": (
        GOOD.replace("columns = 2", "columns = 5"),
        ["variants.int8.grid", "columns = 5", "npu1 has", "4 columns"],
    ),
    "more core rows than the target": (
        GOOD.replace("rows = 1", "rows = 5"),
        ["variants.int8.grid", "rows = 5", "npu1 has 4 rows"],
    ),
}


@pytest.mark.parametrize(("text", "fragments"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_manifest_is_refused_by_file_and_key(
    tmp_path: Path, text: str, fragments: list[str]
) -> None:
    path = write_kernel(tmp_path, text=text)
    with pytest.raises(ManifestError) as refused:
        read_manifest(path)
    for fragment in [str(path), *fragments]:
        assert fragment in str(refused.value)


@pytest.mark.parametrize("key", VARIANT_KEYS)
def test_every_key_of_a_variant_is_needed(tmp_path: Path, key: str) -> None:
    path = write_kernel(tmp_path, text=without(key))
    with pytest.raises(ManifestError, match=rf"variants\.int8: key '{key}' is missing; needed: "):
        read_manifest(path)


def test_a_manifest_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = write_kernel(tmp_path)
    path.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(ManifestError, match="not valid TOML"):
        read_manifest(path)


def test_an_unknown_kernel_is_refused_by_naming_the_known_ones() -> None:
    with pytest.raises(UnknownKernel) as refused:
        load_kernel("matmul_9x9")
    for part in ("'matmul_9x9'", *kernel_folders(), "$NPU_MATMUL_KERNELS"):
        assert part in str(refused.value)


@pytest.mark.parametrize("variant", [None, "int4"])
def test_a_variant_must_be_one_of_the_manifest(variant: str | None) -> None:
    given = "no variant was given" if variant is None else "no variant 'int4'"
    with pytest.raises(UnknownKernel, match=f"{given}.*variants are: int8, bf16"):
        load_kernel("matmul_64x512", variant)


def test_both_kernels_share_one_int8_source() -> None:
    source = load_kernel("matmul_64x512", "int8").require_source()
    assert source.samefile(load_kernel("matmul_16x16").require_source())


def test_the_only_variant_needs_no_name() -> None:
    assert load_kernel("matmul_16x16") == load_kernel("matmul_16x16", "int8")


def test_a_kernel_without_a_core_function_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kernel(tmp_path, "bare", source=False)
    write_kernel(tmp_path, "whole")
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    assert load_kernel("whole").require_source() == tmp_path / "whole" / "core.cc"
    with pytest.raises(KernelNotBuilt) as refused:
        load_kernel("bare").require_source()
    for part in ("'bare'", str(tmp_path / "bare" / "core.cc"), "whole", "matmul_16x16"):
        assert part in str(refused.value)
    assert "bare" not in str(refused.value).partition("use one of")[2]


def test_the_variable_adds_kernels_and_the_first_of_a_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_kernel(first, "matmul_16x16")
    write_kernel(second, "matmul_16x16")
    write_kernel(second, "other")
    monkeypatch.setenv("NPU_MATMUL_KERNELS", os.pathsep.join([str(first), str(second)]))
    assert load_kernel("matmul_16x16").source.parent == first / "matmul_16x16"
    assert load_kernel("other").source.parent == second / "other"
    assert "matmul_64x512" in kernel_folders()
    monkeypatch.delenv("NPU_MATMUL_KERNELS")
    assert load_kernel("matmul_16x16").tile == TileShape(16, 16, 16)
    assert "other" not in kernel_folders()


def test_a_folder_without_a_manifest_is_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    assert "notes" not in kernel_folders()


def test_a_changed_manifest_is_read_again(tmp_path: Path) -> None:
    path = write_kernel(tmp_path)
    before = read_manifest(path)["int8"]
    assert read_manifest(path)["int8"] is before
    path.write_text(GOOD.replace("rows = 1", "rows = 2"))
    os.utime(path, ns=(1, 1))
    assert read_manifest(path)["int8"].grid == CoreGrid(2, 2)
    assert before.grid == CoreGrid(1, 2)


def test_equal_kernels_are_one_key(tmp_path: Path) -> None:
    kernel = read_manifest(write_kernel(tmp_path))["int8"]
    same = dataclasses.replace(kernel)
    assert same is not kernel
    assert {kernel: 1}[same] == 1
    other: Kernel = dataclasses.replace(kernel, tile=TileShape(8, 16, 32))
    assert other not in {kernel: 1}
