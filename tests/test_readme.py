"""What the README promises can be done as it is written there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_doctor import GOOD

from npu_matmul.build.toolchain import INSTALL_MLIR_AIE, INSTALL_PEANO
from npu_matmul.cli import app
from npu_matmul.device import DEVICE_VARIABLE, DEVICES
from npu_matmul.doctor.checks import examine
from npu_matmul.doctor.packages import LIMITS, install_xrt
from npu_matmul.explore.candidates import kernels_array
from npu_matmul.explore.model import model
from npu_matmul.explore.rank import memory_fronts, rank
from npu_matmul.explore.shapes import products_of
from npu_matmul.kernel import load_kernel
from npu_matmul.numbers import three_digits
from npu_matmul.performance.product import Npu
from npu_matmul.strategies import expected
from npu_matmul.tiler import TileGrid

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_computes_the_numpy_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    names: dict = {}
    exec(example, names)
    np, A, B, C = names["np"], names["A"], names["B"], names["C"]
    assert C.shape == (512, 512)
    assert np.array_equal(C, np.matmul(A.astype(np.int32), B.astype(np.int32)))


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in [*re.findall(r"^make (\w+)", README, re.MULTILINE), "bench"]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_it_names_exists() -> None:
    commands = set(re.findall(r"^npu-matmul (\w+)", README, re.MULTILINE))
    assert commands <= set(app.commands) and "demo" in commands


def test_its_table_of_kernels_is_what_the_command_prints() -> None:
    assert CliRunner().invoke(app, ["kernels", "--markdown"]).output in README


def test_every_device_it_names_exists() -> None:
    table = re.findall(r"^\| `(\w+)` \| (?:the|a) ", README, re.MULTILINE)
    assert sorted(table) == sorted(DEVICES)


def test_the_counts_it_gives_for_the_512_cube_are_the_formulas() -> None:
    grid = TileGrid(load_kernel("matmul_16x16"), 512, 512, 512)
    for strategy in ("sequential", "output_tile", "batched"):
        counts = expected(strategy, grid)
        syncs = counts.syncs_to_device + counts.syncs_from_device
        launches = f"{counts.launches:,} launch{'es' if counts.launches > 1 else ''}"
        assert f"{launches}, {syncs:,} syncs" in README


def test_every_file_of_its_reading_list_exists() -> None:
    section = README.split("## Read the code")[1]
    for name in re.findall(r"`([\w/]+\.py)`", section):
        assert (ROOT / "npu_matmul" / name).is_file(), name


def test_every_line_of_the_doctor_it_names_exists() -> None:
    section = " ".join(README.split("## On a Ryzen AI machine")[1].split("\n## ")[0].split())
    told = re.findall(r"(?:passes|Now|finds a) ((?:`[\w -]+`(?:, | and |,? )?)+)", section)
    named = {name for part in told for name in re.findall(r"`([\w -]+)`", part)}
    lines = {line.name for line in examine(GOOD)}
    assert named <= lines
    assert len(named) >= 9


def test_what_it_tells_to_install_is_what_the_doctor_tells() -> None:
    for system, version in (("ubuntu", "26.04"), ("arch", ""), ("fedora", "46")):
        assert f"`{install_xrt(system, version)}`" in README
    for command in install_xrt("ubuntu", "24.04").split(" && "):
        assert f"`{command}`" in README
    for command in (INSTALL_MLIR_AIE, INSTALL_PEANO, LIMITS.split(",")[0]):
        assert f"   {command}\n" in README


FIVE = [f"whisper-{size}" for size in ("tiny", "base", "small", "medium", "large-v3")]


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("names", [["whisper-base"], ["whisper-large-v3"], FIVE], ids=len)
def test_the_next_kernel_is_the_one_that_explore_finds(dtype: str, names: list[str]) -> None:
    products, npu = products_of(names), Npu.named("npu1", 1.6e9)
    ranking = rank(dtype, products, npu)
    fastest = {name: kernels[0] for name, kernels in memory_fronts(ranking).items()}
    shipped = load_kernel("matmul_64x512", dtype)
    took, *takes = (
        float(model(kernels_array(kernel), products, npu, dtype).total_s) * 1e3
        for kernel in (shipped, *fastest.values())
    )
    best = next(iter(fastest.values()))
    tile, depths = best.tile, best.depths
    line = (
        f"| {dtype} | {names[0] if len(names) == 1 else 'all five sizes'} "
        f"| {three_digits(took)} ms | {tile.m} {tile.k} {tile.n}, "
        f"{depths.a} {depths.b} {depths.c} | {three_digits(takes[0])} ms | {takes[0] / took:.2f} |"
    )
    assert line in README
    assert (best.grid.rows, best.grid.columns) == (4, 4)
    words = " ".join(README.split())
    told = re.search(r"another (\d+)% of 64x512's time in int8 and (\d+)% in bf16", words)
    assert told is not None
    assert 0 < (takes[0] - min(takes)) / took * 100 < int(told[1 if dtype == "int8" else 2])
    if dtype == "int8":
        assert f"{ranking.seconds.size:,} kernels for int8" in README
