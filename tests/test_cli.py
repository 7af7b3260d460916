"""The command line as a person uses it: what it prints, what it writes, its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import trace_format
from click.testing import CliRunner, Result
from golden import changed

from npu_matmul import cli
from npu_matmul.assemble import assemble
from npu_matmul.design import design_text
from npu_matmul.device.base import OPEN
from npu_matmul.instructions import decode
from npu_matmul.kernel import load_kernel
from npu_matmul.mlir.elaborate import overlay_of, sequence_of
from npu_matmul.mlir.reader import read_design
from npu_matmul.schedule import cover
from npu_matmul.sequence import SYNTAXES
from npu_matmul.streams import launch_stream
from npu_matmul.tiler import TileGrid

SHAPE = ["-m", "100", "-k", "70", "-n", "50"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def main(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "npu_matmul", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_the_list_of_commands_says_each_in_full() -> None:
    output = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["--help"]).output
    assert {"bench", "build", "demo", "doctor", "encode", "verify"} <= set(cli.app.commands)
    for name, command in cli.app.commands.items():
        said = command.short_help or (command.help or "").splitlines()[0]
        assert f"{name} {said}" in " ".join(output.split()), name
    assert "..." not in output.partition("Commands:")[2]


def test_kernels_lists_every_variant_and_whether_it_can_run() -> None:
    words = " ".join(run("kernels").output.split())
    assert "matmul_16x16 int8 i8,i8->i32 16 16 16 1x1 yes" in words
    assert "matmul_64x512 bf16 bf16,bf16->f32 64 32 128 4x4 yes" in words


def test_a_kernel_without_core_function_is_listed_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare").mkdir()
    manifest = load_kernel("matmul_16x16").source.with_name("kernel.toml").read_text()
    (tmp_path / "bare" / "kernel.toml").write_text(manifest)
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    assert "bare int8 i8,i8->i32 16 16 16 1x1 no: no source" in " ".join(
        run("kernels").output.split()
    )
    done = main("demo", "--kernel", "bare")
    assert done.returncode == 2
    assert "has a manifest but no core function" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_devices_says_what_can_be_used_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    output = " ".join(run("devices").output.split())
    assert "auto yes: cpu" in output
    assert "xrt no:" in output and "cannot import pyxrt" in output
    monkeypatch.setenv("NPU_MATMUL_DEVICE", "xrt")
    assert "auto no:" in " ".join(run("devices").output.split())
    monkeypatch.setenv("NPU_MATMUL_DEVICE", "gpu")
    output = " ".join(run("devices").output.split())
    assert "auto no: $NPU_MATMUL_DEVICE='gpu': " in output and "there is no such device" in output
    monkeypatch.setenv("NPU_MATMUL_DEVICE", "emulated")
    monkeypatch.setenv("NPU_MATMUL_CPU_PATH", "mmx")
    monkeypatch.delitem(OPEN, "cpu", raising=False)
    output = " ".join(run("devices").output.split())
    assert "auto yes: emulated" in output and "cpu no: $NPU_MATMUL_CPU_PATH='mmx'" in output


def test_emitted_design_is_the_generated_one(tmp_path: Path) -> None:
    path = tmp_path / "[bold]design.mlir"
    result = run("emit", "matmul_16x16", "--what", "design", "-o", str(path))
    assert result.exit_code == 0 and str(path) in result.output
    assert path.read_text() == design_text(load_kernel("matmul_16x16"))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_emitted_module_and_stream_have_the_same_words(tmp_path: Path, syntax: str) -> None:
    module, stream = tmp_path / "p.mlir", tmp_path / "p.bin"
    asked = ["emit", "matmul_16x16", *SHAPE, "--mlir-aie", syntax, "-o", str(module)]
    assert run(*asked).exit_code == 0
    assert ("0, %value_" in module.read_text()) == (syntax == "1.4")
    assert run("emit", "matmul_16x16", *SHAPE, "--what", "insts", "-o", str(stream)).exit_code == 0
    device = read_design(module.read_text())
    assert assemble(sequence_of(device), overlay_of(device)) == stream.read_bytes()
    assert decode(stream.read_bytes()).columns == 1


def test_a_module_without_output_file_is_printed() -> None:
    assert "aie.runtime_sequence @matmul" in run("emit", "matmul_16x16", *SHAPE).output


def test_a_kernel_of_any_element_types_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = ('a = "int8", b = "int8"', 'a = "int16", b = "int16"')
    written(tmp_path, "wide_elements", types, ("r = 4, s = 8, t = 8", "r = 4, s = 4, t = 4"))
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    assert "wide_elements int8 i16,i16->i32 16 16 16 1x1" in " ".join(run("kernels").output.split())


def test_modules_of_several_launches_are_not_printed_as_one() -> None:
    result = run("emit", "matmul_16x16", "-m", "8192", "-k", "512", "-n", "8192")
    assert result.exit_code == 2
    assert re.search(r"this shape needs \d+ launches, .*\s+give\s+a file with -o", result.output)


def test_what_is_emitted_for_npu2_is_for_npu2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all of its columns, of which npu1 has half."""
    for_npu2 = ('"npu1"', '"npu2"'), ("columns = 1", "columns = 8")
    written(tmp_path, "eight", *for_npu2)
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    asked = ["emit", "eight", *SHAPE, "--target", "npu2"]
    stream = tmp_path / "p.bin"
    assert run(*asked, "--what", "insts", "-o", str(stream)).exit_code == 0
    found = decode(stream.read_bytes())
    assert (found.target.name, found.columns) == ("npu2", 8)
    device = read_design(run(*asked).output)
    assert assemble(sequence_of(device), overlay_of(device)) == stream.read_bytes()


def written(folder: Path, name: str, *changes: tuple[str, str]) -> None:
    """Another kernel's manifest: that of matmul_16x16 with changes."""
    (folder / name).mkdir()
    manifest = load_kernel("matmul_16x16").source.with_name("kernel.toml").read_text()
    (folder / name / "kernel.toml").write_text(changed(manifest, *changes))


def test_a_variant_of_the_sixteen_core_kernel_can_be_emitted() -> None:
    output = run("emit", "matmul_64x512", "--variant", "bf16", "--what", "design").output
    assert output.count("aie.core(") == 16


def test_a_shape_of_several_launches_gets_numbered_files(tmp_path: Path) -> None:
    kernel = load_kernel("matmul_16x16")
    launches = cover(TileGrid(kernel, 40_000, 16, 40_000))
    assert len(launches) > 1
    path = tmp_path / "big.bin"
    sizes = ["-m", "40000", "-k", "16", "-n", "40000"]
    assert run("emit", "matmul_16x16", *sizes, "--what", "insts", "-o", str(path)).exit_code == 0
    written = sorted(tmp_path.iterdir())
    assert [p.read_bytes() for p in written] == [launch_stream(kernel, x.shape) for x in launches]
    assert written[0].name == f"big-{1:0{len(str(len(launches)))}}.bin"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emit", "nope"], "there is no kernel 'nope'; known are: matmul_16x16"),
        (["emit", "matmul_64x512"], "its variants are: int8, bf16"),
        (["emit", "matmul_16x16", "-m", "3"], "give -m, -k and -n"),
        (["emit", "matmul_16x16", *SHAPE, "--what", "insts"], "give a file with -o"),
        (["emit", "matmul_16x16", "-m", "0"], "0 is not in the range x>=1"),
        (["emit", "matmul_16x16", "--target", "npu2"], "is for npu1, not for npu2"),
        (["demo", "--device", "gpu"], "known are: auto, xrt, emulated, cpu"),
    ],
)
def test_what_a_person_can_cure_is_one_line_and_exit_code_2(
    arguments: list[str], words: str
) -> None:
    done = main(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_want_of_memory_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: there is not enough memory\n"


@pytest.mark.parametrize("name", cli.app.commands)
def test_every_command_can_record_where_its_time_goes(name: str) -> None:
    help_text = " ".join(run(name, "--help").output.split())
    assert "--trace FILE Record where time goes into FILE" in help_text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["kernels"], 0),
        (["devices"], 0),
        (["check", "matmul_16x16"], 0),
        (["emit", "matmul_16x16", *SHAPE], 0),
        (["demo", "--device", "cpu", "--kernel", "nowhere"], 1),
    ],
)
def test_a_traced_command_does_the_same_and_leaves_a_trace(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    plain = run(*arguments)
    path = tmp_path / "out.json"
    traced = run(*arguments, "--trace", str(path))
    assert (plain.exit_code, traced.exit_code) == (code, code)
    assert traced.stdout == plain.stdout
    assert traced.stderr.endswith(f"where time went: {path}\n")
    names = [event["name"] for event in trace_format.spans(trace_format.read(path))]
    assert f"npu-matmul {arguments[0]}" in names


def test_a_trace_that_cannot_be_written_stops_a_command_before_it_does_anything(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.mlir"
    for path in (tmp_path / "nowhere" / "out.json", tmp_path / "out.text"):
        done = main("emit", "matmul_16x16", *SHAPE, "-o", str(output), "--trace", str(path))
        assert done.returncode == 2
        assert "trace" in done.stderr and "Traceback" not in done.stderr
        assert not output.exists()
