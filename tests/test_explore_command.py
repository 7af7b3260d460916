"""What ``npu-matmul explore`` shows: rows that obey the rules, beside kernels that were found."""

from __future__ import annotations

import dataclasses
import doctest
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from comparing import assert_equal_bits, product_int32, random_int8
from rich.console import Console

from npu_matmul import last_call, npu_matmul
from npu_matmul.cli import app
from npu_matmul.explore import found as finding
from npu_matmul.explore import picture, run, shapes, table
from npu_matmul.explore.found import Found, explore
from npu_matmul.explore.manifest import manifest, manifest_text
from npu_matmul.explore.rank import memory_fronts, rank
from npu_matmul.explore.shapes import products_of
from npu_matmul.extras import MissingExtra
from npu_matmul.kernel import load_kernel, read_manifest
from npu_matmul.performance.product import Npu, predict
from npu_matmul.performance.published import trust
from npu_matmul.plan.encoder import projections
from npu_matmul.precision import to_bf16
from npu_matmul.shapes import NAMED
from npu_matmul.tiler import TileGrid
from npu_matmul.whisper.dimensions import SIZES


@pytest.fixture(scope="module")
def found() -> Found:
    return explore("int8", products_of(["whisper-base"]), Npu.named("npu1"))


@pytest.fixture
def quick(found: Found, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The command, with what was explored before; returns what it was asked."""
    asked: list[tuple[object, ...]] = []

    def explored(*arguments: object) -> Found:
        asked.append(arguments)
        return found

    monkeypatch.setattr(run, "explore", explored)
    return asked


def command(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["explore", *arguments])


def test_examples_in_docstrings_hold() -> None:
    assert not doctest.testmod(shapes).failed


# shapes


def test_an_encoder_is_all_its_products_as_often_as_a_window_needs_them() -> None:
    products = products_of(["whisper-small"])
    pairs = list(zip(products.shapes, products.counts, strict=True))
    assert pairs == [(shape, count) for _, shape, count in projections(SIZES["small"])]
    assert products.measure == "a window of 30 s, B on the device"


def test_encoders_and_single_shapes_go_together() -> None:
    products = products_of(["1500,512,512", "whisper-base", "7,8,9"])
    assert dict(zip(products.shapes, products.counts, strict=True))[1500, 512, 512] == 7
    assert products.counts[-1] == 1 and products.shapes[-1] == (7, 8, 9)
    assert products.measure == "a window of 30 s and one product of each shape, B on the device"
    assert "of each and" in products_of([*NAMED, "1,2,3"]).measure


# what is found


def test_every_row_obeys_the_rules_and_has_the_memory_that_was_reckoned(found: Found) -> None:
    ranking = found.ranking
    assert list(found.sections) == ["C int32", "C int16", "C int8", "fewer columns", "found"]
    assert min(len(rows) for rows in found.sections.values()) >= 2
    reckoned = set(ranking.core_bytes.tolist())
    for row in found.rows:
        assert row.core_bytes in reckoned and row.core_bytes <= 65_536
        assert row.rank == ranking.place_of(row.total_s)
        assert ranking.seconds.min() <= row.total_s * (1 + 1e-12)


def test_a_candidate_that_broke_a_rule_would_not_be_shown(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = finding.check_kernel
    monkeypatch.setattr(finding, "rank", lambda *_: found.ranking)
    fat = dataclasses.replace(found.best.kernel, stack_bytes=32_768)
    monkeypatch.setattr(finding, "memory_fronts", lambda _: {"int32": [fat]})
    assert real(fat).violations
    with pytest.raises(AssertionError, match="breaks a design rule"):
        explore("int8", found.ranking.products, found.ranking.npu)


def test_the_shipped_kernels_stand_beside_with_their_rank(found: Found) -> None:
    rows = {row.kernel.name: row for row in found.sections["found"]}
    assert list(rows) == ["matmul_64x512", "matmul_16x16"]  # the faster one first
    row = rows["matmul_64x512"]
    assert row is found.reference and row.found
    seconds = padded = useful = 0.0
    for _, shape, count in projections(SIZES["base"]):
        one = predict(TileGrid(load_kernel("matmul_64x512", "int8"), *shape), resident=True)
        seconds += count * one.device_s
        padded += count * np.prod(shape) / (1 - one.grid.padding)
        useful += count * np.prod(shape)
    assert row.total_s == pytest.approx(seconds)
    assert row.padding == pytest.approx(1 - useful / padded)
    assert 1 < row.rank < rows["matmul_16x16"].rank


def test_the_best_that_can_run_has_its_sums_as_c(found: Found) -> None:
    best = found.best
    assert best.kernel.types.c == "int32" and best.sums_bytes == 0
    assert best.total_s == min(r.total_s for r in found.rows if r.kernel.types.c == "int32")
    assert found.sections["C int8"][0].rank == 1
    assert found.sections["C int16"][0].sums_bytes == found.sections["C int16"][0].kernel.tile.m * (
        found.sections["C int16"][0].kernel.tile.n * 4
    )


def test_a_kernel_that_was_found_and_breaks_a_rule_is_named(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = dataclasses.replace(load_kernel("matmul_64x512", "int8"), stack_bytes=32_768)
    (tmp_path / "fat").mkdir()
    (tmp_path / "fat" / "kernel.toml").write_text(manifest_text(kernel, "too much"))
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    monkeypatch.setattr(finding, "rank", lambda *_: found.ranking)
    monkeypatch.setattr(finding, "memory_fronts", lambda _: {"int32": [found.best.kernel]})
    monkeypatch.setattr(finding, "column_front", lambda _: [])
    again = explore("int8", found.ranking.products, found.ranking.npu)
    assert [kernel.name for kernel in again.broken] == ["fat"]
    assert "fat breaks a design rule here: npu-matmul check fat" in list(table.notes(again))
    assert len(again.sections["found"]) == 2


# what is printed


def printed(found: Found) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    table.show(found, console)
    return console.export_text()


def test_the_table_says_all_in_eighty_columns(found: Found) -> None:
    text = printed(found)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "int8 kernels for whisper-base on npu1 at 1.6 GHz, modelled" in words
    for row in found.rows:
        tile = row.kernel.tile
        rank = f"{row.rank // 1000}k" if row.rank >= 100_000 else f"{row.rank:,}"
        assert f" {rank} {tile.m} {tile.k} {tile.n} " in words
    assert f"Of {found.ranking.seconds.size:,} candidates" in words
    assert f"Modelled, not measured. {trust('npu1')}" in words
    assert "saturate in int16 and int8" in words
    assert "compute matmul_64x512" in words


def test_numbers_of_any_size_keep_eighty_columns(found: Found) -> None:
    """Ranks as on npu2, and milliseconds of the largest product."""
    wide = [
        dataclasses.replace(
            row,
            rank=1_713_000,
            modelled=dataclasses.replace(row.modelled, sync_s=999.0),
            found=True,
        )
        for row in found.rows
    ]
    text = printed(dataclasses.replace(found, sections={"all": wide}))
    assert "1713k" in text and "…" not in text


def test_a_kernel_for_another_target_is_named(found: Found) -> None:
    assert not [line for line in table.notes(found) if "is not for" in line]
    ranking = dataclasses.replace(found.ranking, npu=Npu.named("npu2"))
    notes = list(table.notes(dataclasses.replace(found, ranking=ranking)))
    assert "matmul_64x512 is not for npu2: modelled as if it were." in notes


def test_markdown_has_the_same_rows(found: Found, quick: list[object]) -> None:
    result = command("--markdown")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 2 + len(found.rows)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert lines[0].startswith("| rank | m k n |") and "matmul_64x512 |" in result.stdout


def test_json_has_every_row_and_where_the_figures_are_from(
    found: Found, quick: list[object], tmp_path: Path
) -> None:
    path = tmp_path / "found.json"
    result = command("--json", str(path))
    assert result.exit_code == 0 and f"written: {path}" in result.stderr
    content = json.loads(path.read_text())
    assert content["modelled"] is True
    rows = [row for section in content["sections"].values() for row in section]
    assert [row["rank"] for row in rows] == [row.rank for row in found.rows]
    assert rows[0]["total_s"] == pytest.approx(
        rows[0]["launch_s"] + rows[0]["ends_s"] + rows[0]["busy_s"] + rows[0]["sync_s"]
    )
    assert content["figures"]["convert_cycles"]["kind"] == "assumed"


def test_the_options_are_what_is_explored(quick: list[tuple[object, ...]]) -> None:
    options = ["--dtype", "bf16", "--target", "npu2", "--clock", "1.3", "--shapes", "5,6,7"]
    assert command(*options, "whisper-tiny").exit_code == 0
    dtype, products, npu, *_ = quick[0]
    assert dtype == "bf16" and products == products_of(["5,6,7", "whisper-tiny"])
    assert npu == Npu.named("npu2", 1.3e9)
    command()
    assert quick[1][1:3] == (products_of(["whisper-base"]), Npu.named("npu1", 1.6e9))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "whisper"], "allowed are whisper-tiny, whisper-base"),
        (["--json", "/nowhere/at/all.json"], "give a file in a folder that exists"),
        (["--plot", __file__], "give a folder for the pictures"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_explored(
    arguments: list[str], words: str, quick: list[object]
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = command(*arguments)
    assert isinstance(result.exception, ValueError) and words in str(result.exception)
    assert not quick


def test_two_outputs_at_once_are_refused(quick: list[object]) -> None:
    result = command("--markdown", "--manifest")
    assert result.exit_code == 2 and "give one" in result.stderr
    assert not quick


def test_a_picture_needs_matplotlib(
    quick: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("npu_matmul.pictures.find_spec", lambda _: None)
    result = command("--plot", str(tmp_path))
    assert isinstance(result.exception, MissingExtra) and not quick


def test_the_picture_marks_fronts_and_the_shipped_kernel(found: Found, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    figure = picture.picture(found)
    memory, cores = figure.axes
    assert memory.get_xscale() == memory.get_yscale() == cores.get_xscale() == "log"
    assert "KiB" in memory.get_xlabel() and "ms" in memory.get_ylabel()
    reference = found.reference
    assert reference is not None
    stars = {line.get_label(): line for line in memory.lines if line.get_marker() == "*"}
    (x,), (y,) = stars["matmul_64x512"].get_data()
    assert (x, y) == (reference.core_bytes / 1024, pytest.approx(reference.total_s * 1e3))
    lines = {str(line.get_label()): line for line in memory.lines}
    for section in ("C int32", "C int16", "C int8"):
        times = list(lines[section].get_ydata())
        assert times[0] == pytest.approx(found.sections[section][0].total_s * 1e3)
        assert times == sorted(times)
    path = picture.draw(tmp_path / "new", found)
    assert path.name == "explore-int8-npu1.png" and path.stat().st_size > 20_000
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# the manifest


def test_the_manifest_is_the_row(found: Found, quick: list[object], tmp_path: Path) -> None:
    folder = tmp_path / found.best.kernel.name
    folder.mkdir()
    (folder / "kernel.toml").write_text(command("--manifest").stdout)
    (kernel,) = read_manifest(folder / "kernel.toml").values()
    source = found.best.kernel.source.resolve()
    summary = kernel.summary
    assert kernel == dataclasses.replace(found.best.kernel, summary=summary, source=source)
    assert "of 659,110 candidates the fastest as modelled for whisper-base" in summary


def test_the_best_row_passes_check_and_computes_on_the_emulated_npu(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "explored"
    (tmp_path / name).mkdir()
    (tmp_path / name / "kernel.toml").write_text(manifest(found))
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    checked = CliRunner().invoke(app, ["check", name])
    assert checked.exit_code == 0 and "obeys every rule" in checked.stdout
    a, b = random_int8(1, 300, 230), random_int8(2, 230, 270)
    got = npu_matmul(a, b, dtype=np.int32, kernel=name, device="emulated")
    assert_equal_bits(got, product_int32(a, b))


def test_a_bf16_candidate_computes_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranking = rank("bf16", products_of(["whisper-base"]), Npu.named())
    kernel = memory_fronts(ranking)["float32"][0]
    (tmp_path / "explored").mkdir()
    (tmp_path / "explored" / "kernel.toml").write_text(manifest_text(kernel, "a test"))
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    random = np.random.default_rng(5)
    a, b = (random.standard_normal(shape, np.float32) for shape in ((230, 150), (150, 90)))
    got = npu_matmul(a, b, kernel="explored", device="emulated")
    assert last_call().kernel == "explored"
    left, right = (to_bf16(matrix).astype(np.float64) for matrix in (a, b))
    # every addition in f32 rounds by at most 2^-23 of what was added so far
    bound = 150 * 2.0**-23 * (np.abs(left) @ np.abs(right))
    assert (np.abs(got - left @ right) <= bound).all()
