"""Shapes, environment, files, tables and targets of ``npu-matmul bench``, without measuring."""

from __future__ import annotations

import doctest
import io
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from bench_results import RATES, Row, results_of, target
from rich.console import Console
from rich.table import Table

from npu_matmul import numbers, pictures, shapes
from npu_matmul.bench import (
    accuracy,
    contenders,
    emulated,
    peak,
    plots,
    run,
    session,
    tables,
    targets,
    timing,
)
from npu_matmul.bench import environment as env
from npu_matmul.bench.contenders import (
    BASELINE,
    OWN_INT8,
)
from npu_matmul.bench.session import Plan, Results
from npu_matmul.extras import MissingExtra
from npu_matmul.shapes import NAMED, parse_shapes
from npu_matmul.writing import whole_file, write_json


@pytest.mark.parametrize("module", [accuracy, numbers, session, shapes, tables, targets, timing])
def test_examples_in_docstrings_hold(module: Any) -> None:
    ran = doctest.testmod(module)
    assert ran.attempted and not ran.failed


# shapes and options


def test_names_and_triples_are_taken_once_and_in_order() -> None:
    found = parse_shapes(["7,8,9", "whisper-large", "7,8,9", "1500,1280,1280"])
    assert found == [(7, 8, 9), *NAMED["whisper-large"]]
    assert NAMED["whisper-base"] == ((1500, 512, 512), (1500, 512, 2048), (1500, 2048, 512))
    assert NAMED["whisper-large-v3"] == NAMED["whisper-large"]
    assert NAMED["whisper-small"][1] == (1500, 768, 3072)


@pytest.mark.parametrize(
    "text", ["", "whisper", "1,2", "1,2,3,4", "0,2,3", "1,2,x", "1,2,-3", "1e3,2,3", "99999,1,1"]
)
def test_other_shapes_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_shapes(["whisper-base", text])
    message = str(caught.value)
    assert repr(text) in message
    assert "whisper-tiny, whisper-base, " in message and "turbo, or M,K,N" in message
    assert "1 to 16,384" in message


def test_a_missing_extra_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (contenders, pictures):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"torch: pip install 'npu-matmul\[bench\]'"):
        run.plan_of([], "numpy,torch", "1", False)
    with pytest.raises(MissingExtra, match="onnxruntime and onnx: pip install"):
        run.plan_of([], "ort", "1", False)
    with pytest.raises(MissingExtra, match=r"matplotlib: pip install 'npu-matmul\[plot\]'"):
        pictures.check_outputs(tmp_path, None)
    assert run.plan_of([], None, "1", False).against == ["numpy"]  # by default what is there


def test_other_libraries_threads_and_files_are_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "usable_cpus", lambda: [4, 5, 6])
    with pytest.raises(ValueError, match="allowed are numpy, torch, ort"):
        run.plan_of([], "numpy,jax", "1", False)
    for threads in ("0", "two", "1,-1", "1,4"):
        with pytest.raises(
            ValueError, match="whole numbers from 1 to 3, the CPUs that this process"
        ):
            run.plan_of([], "numpy", threads, False)
    with pytest.raises(ValueError, match="a folder that exists"):
        pictures.check_outputs(None, tmp_path / "absent" / "b.json")
    with pytest.raises(ValueError, match="--json"):
        pictures.check_outputs(None, tmp_path)


def test_threads_are_by_default_one_and_two_as_far_as_there_are_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cpus, threads in ([7], [1]), ([0, 1], [1, 2]), ([0, 1, 2], [1, 2]):
        monkeypatch.setattr(run, "usable_cpus", lambda cpus=cpus: cpus)
        assert run.plan_of([], "numpy", None, False).threads == threads


def test_the_baseline_is_measured_whatever_it_is_compared_with() -> None:
    assert Plan([(1, 1, 1)], against=()).libraries == ["npu_matmul", "numpy", "peak"]
    assert Plan([(1, 1, 1)], against=["ort"]).libraries == ["npu_matmul", "numpy", "ort", "peak"]


def test_operands_are_more_than_the_last_cache_holds_unless_asked() -> None:
    assert Plan([]).pool_bytes > env.last_level_cache_bytes()
    assert Plan([], in_cache=True).pool_bytes == 0


def test_other_commands_and_the_package_import_no_benchmark() -> None:
    program = (
        "import sys, npu_matmul; from click.testing import CliRunner; from npu_matmul import cli;"
        "ended = [CliRunner().invoke(cli.app, words).exit_code for words in"
        " (['kernels'], ['devices'], ['bench', '--help'])];"
        "heavy = ('npu_matmul.bench', 'matplotlib', 'torch', 'onnxruntime');"
        "sys.exit(str([n for n in sys.modules if n.startswith(heavy)] + ended))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    only_the_command = ["npu_matmul.bench", "npu_matmul.bench.command"]
    assert done.stderr.strip() == str([*only_the_command, 0, 0, 0])


# environment and files


def test_the_environment_tells_machine_libraries_and_blas_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("HOME_OF_SECRETS", "x")
    found = env.environment()
    assert found["python"] == platform.python_version()
    assert found["libraries"]["numpy"] == version("numpy") and "numba" in found["libraries"]
    assert found["cores"] == os.cpu_count() and found["cpu"]
    assert set(found["flags"]) <= set(env.FLAGS)
    assert found["settings"]["OPENBLAS_CORETYPE"] == "Haswell"
    assert not any("SECRET" in name for name in found["settings"])
    assert found["blas"]["name"] and found["blas"]["kernel"]
    json.dumps(found)
    line = env.summary({**found, "flags": ["avx2", "avx512_vnni"], "threads": [1, 2]})
    assert found["cpu"] in line and f"{found['blas']['kernel']} kernel" in line
    assert "cores: avx2 avx512_vnni; 1 and 2 threads; Python" in line
    assert "; 1 thread; " in env.summary({**found, "threads": [1]})
    for load, said in ((None, False), (0.1, False), (3.2, True)):
        assert ("load average 3.2" in env.summary({**found, "load_average": load})) == said


def test_openblas_itself_tells_its_kernel() -> None:
    if "openblas" not in env.blas()["name"]:
        pytest.skip(f"NumPy's BLAS here is {env.blas()['name']}, which does not tell")
    assert env.blas()["kernel"] not in ("", "not told")


def test_fewer_cpus_than_there_are_can_be_chosen() -> None:
    one = env.fastest_cpus(1)
    assert len(one) == 1 and set(one) <= set(env.usable_cpus())
    assert sorted(env.fastest_cpus(10_000)) == env.usable_cpus()


def test_each_thread_gets_a_core_of_its_own_and_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CPUs 0, 1 and 2, 3 are a fast core each, the others slow ones; CPU 8 does not tell."""

    def read(path: Path) -> str | None:
        cpu = int(path.parts[5].removeprefix("cpu"))
        if path.name == "thread_siblings_list":
            return None if cpu == 8 else f"{cpu & ~1},{cpu | 1}" if cpu < 4 else str(cpu)
        return "5000000" if cpu < 4 else "3000000"

    monkeypatch.setattr(env, "_read", read)
    monkeypatch.setattr(env, "usable_cpus", lambda: list(range(9)))
    assert env.fastest_cpus(2) == [3, 1]
    assert env.fastest_cpus(4) == [3, 1, 8, 7]
    assert env.fastest_cpus(9) == [3, 1, 8, 7, 6, 5, 4, 2, 0]


def test_copies_beyond_the_cache_are_four_times_its_size_however_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peak, "last_level_cache_bytes", lambda: 1 << 30)
    monkeypatch.setattr(peak, "_copy", lambda size, pool, threads: size)
    assert peak.copy_works(None, 1)["memory"] == (4 << 30, 2 << 30)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write_json(path, {"a": 1})
    with pytest.raises(KeyboardInterrupt), whole_file(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert [each.name for each in tmp_path.iterdir()] == ["b.json"]


def test_json_holds_every_row_with_the_environment_and_the_rule(tmp_path: Path) -> None:
    results = results_of()
    results.strategies = [{"strategy": "batched"}]
    write_json(tmp_path / "b.json", run.content(results))
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["environment"]["blas"] == results.environment["blas"]
    assert found["rule"] == "the rule" and found["operands"] == "the operands"
    assert found["rows"] == results.rows and len(found["rows"]) == 2 * 3 * len(RATES)
    assert found["strategies"] == [{"strategy": "batched"}]
    assert len(found["targets"]) == len(targets.judge(results))
    assert {"peaks", "bandwidth", "small", "stages", "skipped"} <= set(found)


# tables


def printed(table: Table) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    assert console.measure(table).maximum <= 80
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    return text


def test_products_stand_with_their_accuracy_and_the_peaks_in_80_columns() -> None:
    results = results_of()
    shape = [1500, 512, 2048]
    rows = [r for r in results.rows if r["shape"] == shape and r["threads"] == 1]
    peaks = [r for r in results.peaks if r["shape"] == shape and r["threads"] == 1]
    rows[0]["accuracy"] = {"wrong_values": 3_072_000, "values": 3_072_000}
    rows[0]["steady"] = False
    text = printed(tables.products_table(rows, peaks))
    for name in RATES:
        assert name in text
    words = text.split()
    assert "1500x512x2048, one core" in text and "3,072,000" in text
    assert "np.matmul f32 (SkylakeX)" in text
    assert "peak int8, vpdpbusd" in text and "470.0" in words and "4.70" in words
    line = next(line.split() for line in text.splitlines() if contenders.TORCH_INT8 in line)
    note = tables.weights_note(rows)
    assert note == (
        "B is packed before its turns: npu_matmul, ort; packed in each call: "
        '"npu_matmul int8, packing B"; given as it is: numpy, torch'
    )
    assert line == ["torch._int_mm", "7.67", "410.0", "4.10", "87%", "exact"]
    line = next(line for line in text.splitlines() if contenders.TORCH_F32 in line)
    assert "~" in line  # not steady


def test_small_products_and_targets_fit_80_columns() -> None:
    results = results_of()
    text = printed(tables.small_table(results.small))
    assert ["64", "3.10", "5.00", "1.61", "exact"] in [line.split() for line in text.splitlines()]
    text = " ".join(printed(tables.target_table(targets.judge(results), results.operands)).split())
    assert "int8 / np f32 (SkylakeX) 7.50x 4.00x 4.70x not reached*" in text
    assert "operands: the operands" in text
    assert "int8, 16 cube, whole call 2.0 us 1.9 us reached" in text


def test_pairs_stand_beside_what_each_takes_alone() -> None:
    rows = [row for row in results_of().rows if row["shape"] == [1500, 512, 2048]]
    ours, numpys = (
        next(r["seconds"] for r in rows if (r["product"], r["threads"]) == (name, 2))
        for name in (OWN_INT8, BASELINE)
    )
    pair = {**rows[0], "threads": 2, "seconds": 1.5 * (ours + numpys)}
    found = session._beside(pair, results_of().rows)
    assert found["times_alone"] == pytest.approx(1.5)
    assert found["times_with_a_core_less"] == pytest.approx((1.9 * ours + numpys) / (ours + numpys))
    two_alone = [row for row in results_of().rows if row["threads"] == 2]
    assert session._beside(pair, two_alone)["times_with_a_core_less"] is None
    text = printed(tables.beside_table([found]))
    milliseconds = f"{1e3 * pair['seconds']:.1f}"
    assert ["1500x512x2048", "2", milliseconds] == text.split("exact")[0].split()[-6:-3]
    assert text.split("exact")[0].split()[-2:] == ["1.50", "1.18"]


def test_starts_of_processes_are_seconds_with_a_target() -> None:
    results = results_of()
    lines = [line.split() for line in printed(tables.start_table(results.starts)).splitlines()]
    assert ["npu_matmul", "int8", "0.550", "exact"] in lines
    row = target(results, "int8, a process's first result")
    assert (row["reached"], row["worst"], row["asked"]) == (True, 0.55, 0.6)
    results.starts[0]["seconds"] = 0.61
    assert target(results, "int8, a process's")["reached"] is False
    results.starts[0] |= {"seconds": 0.1, "accuracy": {"wrong_values": 1, "values": 9}}
    assert target(results, "int8, a process's")["note"] == "a result is wrong"
    (said,) = session.inaccurate(results)
    assert said.startswith("first npu_matmul int8, 1500x512x512, 2 threads: 1 of 9")


# targets


def strategy_rows() -> list[Row]:
    return [
        {
            **{"shape": [512, 512, 512], "kernel": kernel, "strategy": strategy, "threads": 2},
            **{"launches": launches, "syncs_to_device": launches, "syncs_from_device": 1},
            **{"bytes_to_device": 2_500_000, "bytes_from_device": 1 << 20, "equal": True},
            **{"host_seconds": launches / 1e3, "host_seconds_by_stage": {"launch": launches / 2e3}},
            **{"steady": strategy != "sequential"},
        }
        for kernel in ("matmul_16x16", "matmul_64x512")
        for strategy, launches in (("sequential", 32768), ("output_tile", 1024), ("batched", 1))
    ]


def test_strategies_stand_with_their_counts_threads_and_steadiness_in_80_columns() -> None:
    rows = strategy_rows()
    rows[2]["equal"] = False
    rows[3]["shape"] = [1500, 384, 384]
    text = printed(tables.strategy_table(rows))
    lines = [line.split() for line in text.splitlines()]
    assert "the emulator's, 2 threads" in text and "1500x384x384, 64x512" in text
    assert ["sequential", "32,768", "32,769", "2.50", "1.05", "~32768", "exact"] in lines
    assert ["batched", "1", "2", "2.50", "1.05", "1.00", "wrong"] in lines
    results = Results({}, "", "", strategies=rows)
    assert session.inaccurate(results) == ["batched on matmul_16x16, 512x512x512: values are wrong"]


def test_strategies_are_run_where_the_sequential_one_ends_within_minutes() -> None:
    found, skipped = emulated.feasible([*NAMED["whisper-base"], (16, 16, 16), (512, 512, 512)])
    assert found == [(512, 512, 512), (1500, 512, 512), (16, 16, 16)]
    assert [line.split(" was left out")[0] for line in skipped] == [
        "strategies: 1500x512x2048",
        "strategies: 1500x2048x512",
    ]
    assert f"{94 * 32 * 128:,} launches on matmul_16x16" in skipped[0]


# pictures


def test_pictures_are_drawn_with_the_environment_in_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from PIL import Image

    results = results_of()
    results.strategies = strategy_rows()
    written = plots.draw(tmp_path / "new", results)
    names = ["roofline.png", "stages.png", "strategies.png"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    for path in written:
        with Image.open(path) as picture:
            assert picture.width == 1600
            assert picture.text["Description"] == env.summary(results.environment)
