"""``npu-matmul check``: what it prints of good and bad designs, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from broken_designs import TILES
from click.testing import CliRunner, Result
from golden import FOLDER, changed
from rule_designs import GOOD, mel_frames

from npu_matmul import cli
from npu_matmul.kernel import kernel_folders, load_variants

WIDTH = 80


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, ["check", *arguments])
    assert all(len(line) <= WIDTH for line in result.output.splitlines())
    return result


def words(result: Result) -> str:
    return " ".join(result.output.split())


def file_of(place: Path, text: str) -> str:
    path = place / "design.mlir"
    path.write_text(text)
    return str(path)


def test_without_an_argument_every_kernel_is_checked() -> None:
    result = run()
    assert result.exit_code == 0
    for name in kernel_folders():
        for kernel in load_variants(name).values():
            for target in kernel.targets:
                assert f"{name} {kernel.variant}, {target}" in words(result)
    assert "violation" not in result.output


def test_a_kernel_is_checked_in_all_its_variants() -> None:
    output = words(run("matmul_64x512"))
    assert "matmul_64x512 int8, npu1: obeys every rule" in output
    assert "matmul_64x512 bf16, npu1: obeys every rule" in output
    assert "matmul_16x16" not in output


def test_a_variant_is_checked_alone() -> None:
    output = words(run("matmul_64x512", "--variant", "bf16"))
    assert output.count("obeys every rule") == 1
    assert "matmul_64x512 bf16" in output


def test_a_kernel_can_be_checked_for_another_target() -> None:
    output = words(run("matmul_16x16", "--target", "npu2"))
    assert "matmul_16x16 int8, npu2_1col: obeys" in output
    assert "the manifest is not for npu2: emit and build refuse it" in output
    assert "is not for" not in words(run("matmul_16x16", "--target", "npu1"))
    assert "int8, npu2_4col: obeys" in words(run("matmul_64x512", "--target", "npu2"))


def test_equal_tiles_are_shown_once_and_counted() -> None:
    result = run(str(FOLDER / "sixteen_cores.mlir"))
    assert result.exit_code == 0
    output = words(result)
    assert "sixteen_cores.mlir, npu1: obeys every rule" in output
    assert "memtile (0, 1) and 3 more like it, 524,288 B, basic-sequential" in output
    assert "core (0, 2) and 15 more like it, 65,536 B, basic-sequential" in output
    assert result.output.count("(stack)") == 1


def test_the_map_has_name_range_bytes_and_percent() -> None:
    output = words(run(str(FOLDER / "sixteen_cores.mlir")))
    assert "name range bytes percent" in output
    assert "(stack) 0x00000-0x007FF 2,048 3.1%" in output
    assert "C_L1L2_0_0_buff_0 0x00840-0x0883F 32,768 50.0%" in output
    assert "_anonymous0 (FIFO counters) 0x0E840-0x0E84B 12 0.0%" in output
    assert "(free) 0x0E84C-0x0FFFF 6,068 9.3%" in output


def test_gaps_between_buffers_are_shown() -> None:
    output = words(run(str(FOLDER / "gemm_one_core.mlir"), "--scheme", "bank-aware"))
    assert "a_cons_buff_0 0x00840-0x0093F 256 0.4% (free) 0x00940-0x03FFF 14,016 21.4%" in output
    assert "c_buff_1 0x04000-0x043FF 1,024 1.6%" in output


def test_a_broken_design_is_told_what_where_and_how_to_cure_it(tmp_path: Path) -> None:
    result = run(file_of(tmp_path, mel_frames(100, 2)))
    assert result.exit_code == 1
    output = words(result)
    assert "design.mlir, npu1_1col: 1 violation memory core (0, 2) 177,024 B needed" in output
    assert "cure: make the elements smaller" in output
    assert "frames_cons_buff_1 0x13C80-0x274FF 80,000 122.1%" in output


def test_what_stands_on_something_else_leaves_no_less_free(tmp_path: Path) -> None:
    changes = TILES["a buffer pinned into the stack"][0]
    output = words(run(file_of(tmp_path, changed(GOOD, *changes))))
    assert "(stack) 0x00000-0x003FF 1,024 1.6% rtp 0x00200-0x0023F 64 0.1%" in output
    assert "(free) 0x00400-0x0FFFF 64,512 98.4%" in output


def test_all_violations_are_printed(tmp_path: Path) -> None:
    cases = "memory of a core", "vectors that are not aligned", "an element that is not released"
    text = GOOD
    for case in cases:
        text = changed(text, *TILES[case][0])
    result = run(file_of(tmp_path, text))
    assert result.exit_code == 1
    assert "design.mlir, npu1_1col: 3 violations" in words(result)
    for case in cases:
        assert f"  {TILES[case][1]}  " in result.output


def test_what_has_no_room_is_shown_in_the_map() -> None:
    result = run(str(FOLDER / "sixteen_cores.mlir"), "--scheme", "bank-aware")
    assert result.exit_code == 1
    assert "C_L1L2_0_0_buff_0 no room 32,768 50.0%" in words(result)


def test_names_from_a_design_are_printed_as_they_are(tmp_path: Path) -> None:
    """Nothing in them is taken for markup."""
    path = tmp_path / "[red]x.mlir"
    path.write_text(mel_frames(10, 2))
    assert "[red]x.mlir, npu1_1col: obeys every rule" in words(run(str(path)))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nope"], "there is no kernel 'nope'"),
        (["nope.mlir"], "nope.mlir cannot be read: [Errno 2] No such file"),
        (["matmul_64x512", "--variant", "int4"], "its variants are: int8, bf16"),
        (["--variant", "int8"], "--variant needs a KERNEL"),
        (["x.mlir", "--variant", "int8"], "a file has no variants"),
        (["x.mlir", "--target", "npu1"], "names its target itself"),
        (["matmul_16x16", "--target", "npu3"], "'npu3' is not one of 'npu1', 'npu2'"),
        (["matmul_16x16", "--scheme", "best"], "'best' is not one of 'basic-sequential'"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_exit_code_2(arguments: list[str], why: str) -> None:
    command = [sys.executable, "-m", "npu_matmul", "check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert why in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"aie.device(npu1) {", b"", b"not a design"])
def test_a_file_that_is_no_design_is_exit_code_2(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mlir"
    path.write_bytes(content)
    command = [sys.executable, "-m", "npu_matmul", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "broken.mlir" in done.stderr
    assert "Traceback" not in done.stderr
