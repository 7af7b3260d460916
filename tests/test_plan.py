"""Plans name what npu_matmul would choose, count what it would cost, and say what was modelled."""

from __future__ import annotations

import dataclasses
import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from comparing import random_int8

from npu_matmul import last_call, npu_matmul, pack_b
from npu_matmul.choose import choose
from npu_matmul.cli import app, main
from npu_matmul.device.emulated import EmulatedDevice
from npu_matmul.kernel import UnknownKernel, load_kernel
from npu_matmul.performance.figures import FIGURES
from npu_matmul.performance.host import HostRates
from npu_matmul.performance.product import Npu
from npu_matmul.performance.published import ROWS, trust
from npu_matmul.plan import encoder, planning, tables
from npu_matmul.plan.encoder import overlay_switches, plan_encoder, projections
from npu_matmul.plan.planning import CpuProduct, plan_product
from npu_matmul.schedule import LimitError
from npu_matmul.whisper.dimensions import SIZES, random_tensors
from npu_matmul.whisper.model import AudioEncoder

README = Path(__file__).parent.parent / "README.md"
RATES = HostRates(10e9, 30e9, 40e9, copy_a_s=2e-6, copy_b_s=3e-6, add_s=4e-6)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "80"})


def output(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    return " ".join(done.output.split())


@pytest.mark.parametrize("module", [planning, encoder])
def test_the_docstring_examples_hold(module: Any) -> None:
    tried = doctest.testmod(module)
    assert tried.attempted and not tried.failed


@pytest.mark.parametrize("shape", [(16, 16, 16), (200, 64, 300), (1500, 512, 512)])
@pytest.mark.parametrize("dtype", ["int8", "bf16", "bf16x3"])
@pytest.mark.parametrize("strategy", [None, "sequential"])
def test_a_plan_is_what_npu_matmul_would_choose(
    shape: tuple[int, int, int], dtype: str, strategy: str | None
) -> None:
    how = planning.DTYPES[dtype]
    choice = choose(EmulatedDevice(), how.types, (*shape, how.terms), strategy=strategy)
    plan = plan_product(shape, dtype, strategy=strategy, with_host=False)
    assert plan.chosen.grid.kernel == choice.kernel
    assert plan.chosen.strategy == choice.strategy
    assert plan.chosen.grid.terms == how.terms
    assert not plan.as_if
    assert list(plan.strategies) == ["sequential", "output_tile", "batched"]


@pytest.mark.parametrize("shape", [(8, 64, 64), (1, 512, 64), (16, 128, 128)])
def test_a_resident_b_is_planned_for_the_kernel_that_it_is_packed_for(
    shape: tuple[int, int, int],
) -> None:
    """Before A is known, for many rows."""
    a, b = random_int8(1, *shape[:2]), random_int8(2, *shape[1:])
    npu_matmul(a, pack_b(b, device="emulated"))
    plan = plan_product(shape, resident=True, with_host=False)
    assert plan.chosen.grid.kernel.name == last_call().kernel == "matmul_64x512"
    assert plan.chosen.strategy == last_call().strategy


def test_packing_does_not_know_the_strategy_that_is_asked_for_later() -> None:
    shape = 1024, 16, 16
    packed = pack_b(random_int8(2, 16, 16), device="emulated")
    alone = plan_product(shape, strategy="sequential", with_host=False).chosen.grid.kernel
    plan = plan_product(shape, strategy="sequential", resident=True, with_host=False)
    assert plan.chosen.grid.kernel == packed.kernel != alone


def test_a_clock_changes_the_times_and_not_the_choice() -> None:
    """npu_matmul does not know the clock: it assumes the default. At 0.8 GHz the other would be."""
    shape, npu = (48, 256, 128), Npu.named("npu1", 0.8e9)
    choice = choose(EmulatedDevice(), planning.DTYPES["int8"].types, shape)
    slow = plan_product(shape, npu=npu, with_host=False)
    assert slow.chosen.grid.kernel == choice.kernel != slow.kernels[0][1]
    assert slow.chosen.npu == npu
    assert "chosen at 1.6 GHz" in output(*map(str, shape), "--clock", "0.8", "--no-host")


def test_of_two_variants_that_were_named_it_is_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (load_kernel("matmul_16x16").source.parent / "kernel.toml").read_text("utf-8")
    second = text[text.index("[variants.int8]") :].replace("variants.int8", "variants.small")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "kernel.toml").write_text(text.replace("= 16", "= 32") + (
        second.replace("= 16", "= 8")
    ))  # fmt: skip
    (tmp_path / "two" / "matmul_i8.cc").write_text("")
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    plan = plan_product((8, 8, 8), kernel="two", with_host=False)
    choice = choose(EmulatedDevice(), planning.DTYPES["int8"].types, (8, 8, 8), kernel="two")
    assert plan.chosen.grid.kernel == choice.kernel and choice.kernel.variant == "int8"
    assert plan.kernels[0][1].variant == "small"


def test_kernel_strategy_and_residence_may_be_asked_for() -> None:
    plan = plan_product(
        (300, 100, 500), kernel="matmul_16x16", strategy="output_tile", resident=True,
        with_host=False,
    )  # fmt: skip
    assert plan.chosen.grid.kernel.name == "matmul_16x16"
    assert plan.chosen.counts.launches == 19 * 32
    assert plan.chosen.counts.bytes_to_device == 304 * 112
    with pytest.raises(UnknownKernel, match="there is no kernel 'none'"):
        plan_product((1, 1, 1), kernel="none", with_host=False)
    with pytest.raises(UnknownKernel, match="'matmul_16x16' has nothing for bfloat16 operands"):
        plan_product((1, 1, 1), "bf16", kernel="matmul_16x16", with_host=False)


def test_a_target_without_kernels_is_modelled_as_if_it_had_those_of_another() -> None:
    plan = plan_product((1500, 512, 512), npu=Npu.named("npu2"), with_host=False)
    assert plan.as_if and plan.chosen.grid.kernel.name == "matmul_64x512"
    assert plan.npu.clock_hz == 1.8e9
    assert plan.chosen.array.launch_s == FIGURES["npu2"].launch_s


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_the_projections_are_those_of_the_encoder(size: str) -> None:
    """By the shapes of the matrices that an encoder of random weights holds."""
    dims = dataclasses.replace(SIZES[size], n_audio_layer=1)
    model = AudioEncoder(random_tensors(dims), device="cpu")
    block = model.blocks[0]
    weights = {
        "conv1": model.conv1.weight,
        "conv2": model.conv2.weight,
        "attn.qkv": block.attn.qkv[0].weight,
        "attn.out": block.attn.out.weight,
        "mlp.0": block.mlp[0].weight,
        "mlp.2": block.mlp[1].weight,
    }
    listed = {name: (k, n) for name, (_, k, n), _ in projections(dims)}
    assert listed == {name: weight.shape for name, weight in weights.items()}


def test_an_encoder_is_the_sum_of_its_projections() -> None:
    planned = plan_encoder(SIZES["base"], "bf16", Npu.named(), with_host=False)
    assert [(one.name, one.count) for one in planned][2:4] == [("attn.qkv", 6), ("attn.out", 6)]
    assert all(one.plan.resident for one in planned)
    assert planned[2].device_s == pytest.approx(6 * planned[2].plan.chosen.device_s)
    assert overlay_switches(planned) == 0


def test_changes_of_the_overlay_are_counted() -> None:
    planned = plan_encoder(SIZES["tiny"], "int8", Npu.named(), with_host=False)
    other = plan_product((1500, 384, 384), kernel="matmul_16x16", with_host=False)
    planned[3] = dataclasses.replace(planned[3], plan=other)  # attn.out of four layers
    assert overlay_switches(planned) == 2 * 4


def test_a_product_on_the_terminal() -> None:
    said = output("1500", "512", "512", "--clock", "1.0")
    assert "(1500, 512) @ (512, 512), int8, on npu1 at 1 GHz" in said
    assert "matmul_64x512, 4x4 cores of 64x64x128; matmul_16x16 26" in said
    assert "batched; columns outside: B 6x, A 1x" in said
    assert "launches 1, syncs 2, 1.05 MB in, 3.15 MB out, core calls 768" in said
    assert "sequential 48 96" in said and "CPU, this host, measured:" in said
    assert f"{trust('npu1')} See npu-matmul plan --published" in said
    compute = f"{predict_compute_s() * 1e3:.3f}"
    assert f"compute {compute} overlapping; the longest" in said


def predict_compute_s() -> float:
    plan = plan_product((1500, 512, 512), npu=Npu.named("npu1", 1e9), with_host=False)
    return float(plan.chosen.array.compute_s)


def test_what_is_modelled_is_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    output("300", "200", "100", "--dtype", "bf16", "--no-host", "--json", str(path))
    written = json.loads(path.read_text("utf-8"))
    assert written["shape"] == [300, 200, 100] and written["cpu_measured_s"] is None
    chosen = written["chosen"]
    assert (chosen["kernel"], chosen["launches"], chosen["dma_tasks"]) == ("matmul_64x512", 1, 12)
    assert chosen["modelled"]["busy_s"] == max(
        chosen["modelled"][f"{part}_s"] for part in ("input", "output", "compute", "issue")
    )
    output("--published", "--json", str(path))
    assert len(json.loads(path.read_text("utf-8"))["rows"]) == len(ROWS)


@pytest.mark.parametrize(("row_s", "written"), [(1e-12, "never"), (1.0, 1)])
def test_no_crossover_is_not_one_that_was_not_measured(
    row_s: float, written: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "measure_host", lambda *_: RATES)
    cpu = CpuProduct(1, row_s, 0.0, row_s, "as given")
    monkeypatch.setattr(planning, "time_on_cpu", lambda *_: cpu)
    path = tmp_path / "plan.json"
    for extra, crossover in ([], written), (["--no-host"], None):
        output("64", "64", "64", "--json", str(path), *extra)
        plan = json.loads(path.read_text("utf-8"))
        assert plan["crossover_rows"] == crossover
        assert sorted(plan["chosen"]["host_stages_s"]) == ([] if extra else ["pack", "unpack"])


def test_an_encoder_on_the_terminal() -> None:
    said = output("--whisper", "large-v3", "--dtype", "bf16", "--no-host", "--target", "npu2")
    assert "Whisper large-v3, one window of 30 s, bf16, on npu2 at 1.8 GHz" in said
    assert "No kernel here is for npu2" in said
    assert trust("npu2") in said and "0.92 to" not in said
    assert "attn.qkv 32" in said and "1500x1280x3840" in said and "all 130" in said
    assert "rows outside: A 8x, B 6x" in said


def test_each_projection_has_its_crossover_and_its_counts() -> None:
    said = output("--whisper", "tiny", "--dtype", "float-int8")
    assert "NPU wins" in said and "1500x384x1152" in said
    counts = plan_product((1500, 384, 384), "float-int8", resident=True, with_host=False).chosen
    moved = counts.counts.bytes_to_device / 1e6, counts.counts.bytes_from_device / 1e6
    assert f"26.8% 1 {moved[0]:.2f} {counts.dma_bytes / 1e6:.2f}" in said


def test_where_the_cpu_always_wins_there_is_no_crossover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measure_host", lambda *_: RATES)
    monkeypatch.setattr(
        planning, "time_on_cpu", lambda *_: CpuProduct(1, 1e-12, 0.0, 1e-12, "as given")
    )
    said = output("--whisper", "tiny")
    assert said.count(" never") == 6
    assert "slower for any M up to 1,048,576" in output("1500", "384", "384")


def test_many_launches_are_the_strategys_fault() -> None:
    said = output("1500", "512", "512", "--strategy", "sequential", "--no-host")
    assert "bound by what each of 48 launches costs beside its work; batched makes 1." in said
    assert "the product is small for an NPU" in output("16", "16", "16", "--no-host")


def test_how_often_operands_are_read_is_counted_over_all_launches() -> None:
    """Here the stream's limit cuts the product, and each launch reads the operand of its inner
    loop anew."""
    plan = plan_product((20_000, 20_000, 20_000), with_host=False)
    a, b = tables.reads(plan.chosen)
    assert plan.chosen.counts.launches > 1 and (a, b) == (40, 79)
    assert tables.loop_order(plan.chosen) == "columns outside: B 79x, A 40x"


def test_digits_are_never_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest times that there are: the largest encoder, three terms, the slowest clock, a
    slow CPU."""
    monkeypatch.setattr(planning, "measure_host", lambda *_: dataclasses.replace(RATES, pack=1e7))
    slow = CpuProduct(1, 0.01, 0.0, 0.01, "as given")
    monkeypatch.setattr(planning, "time_on_cpu", lambda *_: slow)
    said = output("--whisper", "large-v3", "--dtype", "bf16x3", "--clock", "0.8")
    assert "\u2026" not in said and "480000" in said  # ms, of 32 products of 1,500 rows


def test_where_a_file_cannot_be_written_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "time_on_cpu", lambda *_: pytest.fail("measured"))
    done = run("64", "64", "64", "--json", str(tmp_path / "nowhere" / "x.json"))
    assert isinstance(done.exception, ValueError)
    assert "give a file in a folder that exists" in str(done.exception)


def test_a_product_of_millions_of_launches_is_planned() -> None:
    said = output("1000000", "1000", "1000000", "--strategy", "output_tile", "--no-host")
    assert f"launches {-(-(10**6) // 256) * -(-(10**6) // 512):,}" in said


def test_what_no_launch_can_reach_is_left_out_or_refused() -> None:
    """A of 6.1 GiB, on four rows of cores."""
    shape = "1600000", "4096", "512", "--no-host"
    said = output(*shape)
    assert "sequential" in said and "output_tile" not in said and "batched" not in said
    assert "matmul_16x16" in output(*shape, "--strategy", "batched")
    done = run(*shape, "--strategy", "batched", "--kernel", "matmul_64x512")
    assert isinstance(done.exception, LimitError)
    assert "multiply fewer rows of A at a time" in str(done.exception)


def test_published_products_on_the_terminal() -> None:
    said = output("--published")
    for row in ROWS:
        assert f"{row.ratio:.2f} {row.modelled.limit}" in said
    readme = " ".join(README.read_text("utf-8").split())
    assert trust("npu1") in said and trust("npu1") in readme
    assert trust("npu2") in said
    assert "assumed in some rows: 1.6 GHz, A and B by rows; midpoint of 1930 to 2020" in said
    assert "512x512x512 32,768 15.11 s 15.40 s 0.98" in said
    assert "16x16x16 1 1.97 ms 1.97 ms fitted" in said
    assert "97% are 32,768 launches of 0.32 ms" in said


def test_every_figure_is_shown_with_its_source() -> None:
    said = output("--figures", "--target", "npu2")
    for name, figure in FIGURES["npu2"].named():
        assert f"{name} {float(figure):.4g} {figure.unit} {figure.kind}" in said
        assert " ".join(figure.source.split()) in said.replace("- ", "-")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give M K N, or one of --whisper, --published and --figures"),
        (["1", "2"], "M K N are three numbers; 2 were given"),
        (["1", "2", "3", "--published"], "give M K N, or one of"),
        (["0", "2", "3"], "0 is not in the range x>=1"),
        (["1", "2", "3", "--clock", "5"], "'5' is not one of '0.8', '1.0', '1.3', '1.6', '1.8'"),
        (["1", "2", "3", "--plot", "x"], "--plot does not go with M K N"),
        (["--whisper", "base", "--kernel", "matmul_16x16"], "--kernel does not go with --whisper"),
        (["--whisper", "base", "--strategy", "sequential"], "--strategy does not go with --wh"),
        (["--published", "--target", "npu2"], "--target does not go with --published"),
        (["--published", "--no-host"], "--no-host does not go with --published"),
        (["--figures", "--clock", "1.6"], "--clock does not go with --figures"),
        (["--whisper", "huge"], "'huge' is not one of 'tiny', 'base'"),
    ],
)
def test_usage_errors(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_a_strategy_that_does_not_exist_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["npu-matmul", "plan", "1", "2", "3", "--strategy", "best"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "there is no strategy 'best'; known are: sequential" in capsys.readouterr().err


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output("--published", "--plot", str(tmp_path))
    assert (tmp_path / "published.png").read_bytes().startswith(b"\x89PNG")
