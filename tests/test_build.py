"""Building overlays: what happens around the commands, with stand-in programs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from build_tools import StandIns, changed_kernels
from click.testing import CliRunner, Result
from comparing import assert_equal_bits, product_int32, random_int8
from pyxrt_double.built import publish
from pyxrt_double.npu import Npu

from npu_matmul import cli, npu_matmul
from npu_matmul.build import cache, run, toolchain
from npu_matmul.build.identity import overlay_inputs, overlay_name
from npu_matmul.build.plan import (
    build_steps,
)
from npu_matmul.build.run import BuildFailed, build
from npu_matmul.build.toolchain import ToolchainMissing, find_toolchain
from npu_matmul.kernel import KernelNotBuilt, TileShape, load_kernel

KERNEL = load_kernel("matmul_16x16")
ROOT = Path(__file__).resolve().parent.parent
RELEASES = ["1.3", "1.4", "1.4.4"]  # of mlir-aie, whose aiecc takes other options in each


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """A toolchain whose products are right; running them has tests of its own."""
    monkeypatch.setattr(run, "verified", lambda *_: "not run here")
    return StandIns(tmp_path, monkeypatch, KERNEL)


def command_line(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["build", *arguments])


# --- the toolchain -----------------------------------------------------------------------------


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLIR_AIE_INSTALL_DIR", "PEANO_INSTALL_DIR", "XILINX_XRT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "XRT_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


def test_what_is_missing_is_named_with_what_to_install(no_tools: None) -> None:
    with pytest.raises(ToolchainMissing) as caught:
        build(KERNEL, "npu1")
    message = str(caught.value)
    assert "lacks mlir-aie, Peano, xclbinutil:" in message
    assert "pip install mlir_aie==1.3.4 -f https://github.com/Xilinx/mlir-aie/releases/" in message
    assert "pip install llvm-aie -f https://github.com/Xilinx/llvm-aie/releases/" in message
    assert "$PEANO_INSTALL_DIR" in message


def test_a_release_without_aiecc_is_too_old(tools: StandIns) -> None:
    (tools.mlir_aie / "bin" / "aiecc").unlink()
    with pytest.raises(ToolchainMissing, match=r"lacks aiecc:\n  update mlir-aie, releases before"):
        find_toolchain()


@pytest.mark.parametrize("body", ["exit 1", "echo '--aie-generate-elf only'"])
def test_an_aiecc_that_does_not_run_or_is_unknown_is_named(tools: StandIns, body: str) -> None:
    aiecc = tools.mlir_aie / "bin" / "aiecc"
    aiecc.write_text(f"#!/bin/sh\n{body}\n")
    with pytest.raises(ToolchainMissing, match=r"with known options:\n .*/aiecc does not run, or"):
        find_toolchain()
    assert any(part.path is None for part in toolchain.survey())


def test_python_packages_are_found(
    no_tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("mlir_aie", "llvm-aie"):
        (tmp_path / folder).mkdir()

    class Package:
        def locate_file(self, name: str) -> Path:
            return tmp_path / name

    asked: list[str] = []

    def distribution(name: str) -> Package:
        asked.append(name)
        return Package()

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    found = {part.name: part.path for part in toolchain.survey()}
    assert asked == ["mlir_aie", "llvm-aie"]
    assert (found["mlir-aie"], found["Peano"]) == (tmp_path / "mlir_aie", tmp_path / "llvm-aie")
    assert found["aiecc"] is None


def test_a_program_that_tells_no_version_is_known_by_its_content(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    first = toolchain.version_of(program)
    assert first.startswith("sha256 ")
    program.write_text("#!/bin/sh\nexit 2\n")
    assert toolchain.version_of(program) != first


# --- building ----------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_build_is_found_and_computes_the_product(
    tools: StandIns, double: Npu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str
) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("STANDIN_AIECC", release)
    told: list[str] = []
    built = build(KERNEL, "npu1", tell=told.append)
    assert [Path(call[0]).name for call in tools.calls] == ["clang++", "aiecc"]
    assert told[0].startswith("log: ") and told[1:] == [
        "compile matmul_i8.cc",
        "compile the overlay",
        "running what aiecc lowered on the emulated NPU",
        "not run here",
    ]
    assert cache.find_built(KERNEL, "npu1") == built
    later = ") : i32" in (built.folder / "design.mlir").read_text()
    assert later == (release != "1.3")
    assert {p.name for p in built.folder.iterdir()} == {
        *("overlay.xclbin", "insts.bin", "design.mlir", "lowered.mlir", "matmul_i8.o"),
        "build.json",
    }
    assert set(built.record.products) == {
        *("overlay.xclbin", "insts.bin", "design.mlir", "lowered.mlir", "matmul_i8.o")
    }
    assert built.record.tools["Peano"] == "clang++ 1.0"
    log = Path(told[0].removeprefix("log: "))
    assert "clang++ works" in log.read_text() and "aiecc works" in log.read_text()
    a, b = random_int8(1, 40, 50), random_int8(2, 50, 60)
    got = npu_matmul(a, b, device="xrt", kernel=KERNEL, dtype=np.int32)
    assert_equal_bits(got, product_int32(a, b))


def test_nothing_is_built_twice_unless_forced(tools: StandIns) -> None:
    first = build(KERNEL, "npu1")
    told: list[str] = []
    assert build(KERNEL, "npu1", tell=told.append) == first
    assert told == ["nothing has changed since it was built"]
    assert len(tools.calls) == 2
    (first.folder / "left").touch()  # of the old one, which the new one replaces as a whole
    assert build(KERNEL, "npu1", force=True).folder == first.folder
    assert len(tools.calls) == 4
    assert not (first.folder / "left").exists()
    assert [p for p in first.folder.parent.iterdir() if p.suffix != ".lock"] == [first.folder]


def test_another_version_of_a_tool_builds_anew(
    tools: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(KERNEL, "npu1")
    monkeypatch.setenv("STANDIN_VERSION", "2.0")
    second = build(KERNEL, "npu1")
    assert second.folder != first.folder
    assert cache.find_built(KERNEL, "npu1").folder == second.folder  # the newest of them


@pytest.mark.parametrize("change", changed_kernels())
def test_what_changed_since_the_build_is_named(tools: StandIns, change: str) -> None:
    build(KERNEL, "npu1")
    words = {"source": "source matmul_i8.cc"}.get(change, "manifest")
    with pytest.raises(KernelNotBuilt, match=f"these changed: .*{words}.*npu-matmul build"):
        cache.find_built(changed_kernels()[change], "npu1")


@pytest.mark.parametrize("program", ["clang++", "aiecc"])
def test_a_failing_program_leaves_nothing_but_its_log(
    tools: StandIns, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_FAILS", program)
    with pytest.raises(BuildFailed) as caught:
        build(KERNEL, "npu1")
    message = str(caught.value)
    assert f"{program} ended with exit code 2" in message
    assert f"{program}: error: on purpose" in message
    hint = "By its options this aiecc is of mlir-aie 1.3, so design.mlir has the syntax of that"
    assert (hint in message) == (program == "aiecc")
    (log,) = (cache.cache_root() / "logs").iterdir()
    assert str(log) in message
    assert "$ " in log.read_text()
    assert all(p.suffix == ".lock" for p in cache.overlays_folder(KERNEL, "npu1").iterdir())
    with pytest.raises(KernelNotBuilt, match="never been built"):
        cache.find_built(KERNEL, "npu1")
    monkeypatch.delenv("STANDIN_FAILS")
    build(KERNEL, "npu1")


def test_a_program_that_writes_nothing_has_failed(
    tools: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_FAILS", "empty")
    with pytest.raises(BuildFailed, match=r"aiecc did not write overlay\.xclbin"):
        build(KERNEL, "npu1")


def test_design_rules_come_first(tools: StandIns) -> None:
    big = dataclasses.replace(KERNEL, tile=TileShape(64, 64, 512))
    with pytest.raises(BuildFailed, match=r"breaks \d+ design rules? on npu1, the first: "):
        build(big, "npu1")
    assert tools.calls == []


def test_a_half_written_overlay_is_never_loaded(tools: StandIns) -> None:
    built = build(KERNEL, "npu1")
    (built.folder / cache.RECORD).unlink()
    with pytest.raises(KernelNotBuilt):
        cache.find_built(KERNEL, "npu1")
    assert build(KERNEL, "npu1").folder == built.folder
    (built.folder / cache.RECORD).write_text('{"kernel": "ma')
    with pytest.raises(KernelNotBuilt):
        cache.find_built(KERNEL, "npu1")
    build(KERNEL, "npu1")
    built.xclbin.write_bytes(built.xclbin.read_bytes()[:-1])
    with pytest.raises(KernelNotBuilt, match="is not what the build made"):
        cache.find_built(KERNEL, "npu1")
    build(KERNEL, "npu1")
    cache.find_built(KERNEL, "npu1")


def test_what_a_killed_build_left_is_no_overlay_and_is_cleared(tools: StandIns) -> None:
    built = build(KERNEL, "npu1")
    left = built.folder.with_name(f"{cache.UNFINISHED}{built.folder.name}-1")
    built.folder.rename(left)  # all of it, but the name
    with pytest.raises(KernelNotBuilt):
        cache.find_built(KERNEL, "npu1")
    build(KERNEL, "npu1")
    assert not left.exists()


BUILD = """
import sys
from npu_matmul.build.run import build
from npu_matmul.kernel import load_kernel
print(build(load_kernel("matmul_16x16"), "npu1").folder)
"""


def builder() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_builds_at_the_same_time_make_one_overlay(
    tools: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_SECONDS", "0.3")
    builders = [builder() for _ in range(2)]
    results = [process.communicate(timeout=60) for process in builders]
    assert [process.returncode for process in builders] == [0] * 2, results
    assert len({out for out, _ in results}) == 1
    assert [call[0] for call in tools.calls] == ["clang++", "aiecc"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_build_ends_its_programs_and_leaves_nothing(
    tools: StandIns, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("STANDIN_SECONDS", "100")
    process = builder()
    deadline = time.monotonic() + 30
    while [call[0] for call in tools.calls] != ["clang++", "aiecc"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
    else:
        assert process.returncode == 128 + number
    assert not tools.running()
    left = [p for p in cache.overlays_folder(KERNEL, "npu1").iterdir() if p.suffix != ".lock"]
    assert left == []


# --- the command -------------------------------------------------------------------------------


def test_the_command_builds_and_says_where(tools: StandIns) -> None:
    result = command_line("matmul_16x16")
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "matmul_16x16 int8, npu1" in words
    assert "log: " in words and "built" in words
    assert str(cache.find_built(KERNEL, "npu1").folder) in result.output.replace("\n", "")


def test_a_dry_run_prints_the_commands_and_runs_none(tools: StandIns) -> None:
    result = command_line("matmul_16x16", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "# matmul_16x16 int8, npu1"
    assert lines[1] == (
        "npu-matmul emit matmul_16x16 --variant int8 --target npu1 -m 32 -k 48 -n 32 "
        "--mlir-aie 1.3 -o design.mlir"
    )
    name = overlay_name(overlay_inputs(KERNEL, "npu1"))
    core, overlay = build_steps(KERNEL, "npu1", find_toolchain().tools, name)
    assert lines[2].split() == list(core.command)
    assert lines[3].split() == list(overlay.command)
    assert tools.calls == []
    assert not cache.cache_root().exists()


@pytest.mark.parametrize("variable", ["MLIR_AIE_INSTALL_DIR", "PEANO_INSTALL_DIR", "XILINX_XRT"])
def test_a_variable_that_names_no_folder_is_named(
    tools: StandIns, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/opt/mistyped")
    monkeypatch.setattr(toolchain, "XRT_FOLDERS", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainMissing) as caught:
        find_toolchain()
    (cure,) = str(caught.value).splitlines()[1:]
    assert cure == f"  ${variable} is '/opt/mistyped', which is no folder: correct it, or unset it"


def test_a_dry_run_needs_no_toolchain(no_tools: None) -> None:
    output = command_line("--dry-run").output
    assert "# the toolchain lacks mlir-aie, Peano, xclbinutil" in output
    assert "$PEANO_INSTALL_DIR/bin/clang++ --target" in output
    assert output.count("npu-matmul emit") == 3  # every variant of every kernel


def test_a_kernel_is_built_only_for_what_it_is_for(tools: StandIns) -> None:
    refused = command_line("matmul_16x16", "--target", "npu2", "--dry-run")
    assert refused.exit_code == 2 and "matmul_16x16 is for npu1, not for npu2" in refused.output
    assert "no kernel here is for npu2" in command_line("--target", "npu2").output
    assert tools.calls == []


def test_a_variant_needs_its_kernel() -> None:
    assert "--variant needs a KERNEL" in command_line("--variant", "int8").output


def test_the_record_tells_how_it_was_built(tools: StandIns) -> None:
    table = json.loads((build(KERNEL, "npu1").folder / cache.RECORD).read_text())
    assert table["inputs"] == overlay_inputs(KERNEL, "npu1")
    assert [Path(command[0]).name for command in table["commands"]] == ["clang++", "aiecc"]
    assert f"--xclbin-kernel-name={table['name']}" in table["commands"][1]


def test_builds_are_published_whole(tools: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the very last step there is nothing under the overlay's name, or the one before."""
    rename, exchange = Path.rename, cache._exchange
    steps = []

    def look(self: Path, target: Path) -> Path:
        steps.append("rename")
        assert not Path(target).exists()
        assert {p.name for p in self.iterdir()} >= {"overlay.xclbin", cache.RECORD}
        return rename(self, target)

    def look_at_both(one: Path, other: Path) -> None:
        steps.append("exchange")
        assert cache.find_built(KERNEL, "npu1").folder == other
        exchange(one, other)
        assert cache.find_built(KERNEL, "npu1").folder == other

    monkeypatch.setattr(Path, "rename", look)
    monkeypatch.setattr(cache, "_exchange", look_at_both)
    first = build(KERNEL, "npu1")
    second = build(KERNEL, "npu1", force=True)
    assert steps == ["rename", "exchange"]
    assert second.folder == first.folder and second.record.built > first.record.built


def test_folders_that_cannot_change_their_names_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="here"):
        cache._exchange(tmp_path / "here", tmp_path / "there")


def test_the_cache_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/someone/.cache")
    assert cache.cache_root() == Path("/home/someone/.cache/npu-matmul")


def test_the_doubles_overlays_are_published_like_built_ones(tools: StandIns) -> None:
    built = publish(KERNEL)
    assert cache.find_built(KERNEL, "npu1") == built
    assert run.require_rules(KERNEL, "npu1") is None
