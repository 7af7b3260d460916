"""What a build's own tools made is run before it is published, and refused when it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from build_tools import StandIns
from click.testing import CliRunner

from npu_matmul import cli
from npu_matmul.build import cache
from npu_matmul.build.run import BuildFailed, build
from npu_matmul.build.verified import BuildRefused
from npu_matmul.kernel import KernelNotBuilt, load_kernel

KERNEL = load_kernel("matmul_16x16")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    return StandIns(tmp_path, monkeypatch, KERNEL)


def assert_nothing_published() -> None:
    with pytest.raises(KernelNotBuilt, match="never been built"):
        cache.find_built(KERNEL, "npu1")


def test_a_right_build_is_published_with_what_was_shown(tools: StandIns) -> None:
    built = build(KERNEL, "npu1")
    assert built.record.verified == "84 launches under 12 schedules right, stream equal"
    assert cache.find_built(KERNEL, "npu1").record.verified == built.record.verified
    assert (built.folder / "lowered.mlir").read_text() == tools.lowered.read_text()


def test_a_module_with_a_wrong_lock_is_refused_and_named(tools: StandIns) -> None:
    module = tools.lowered.read_text()
    wrong = module.replace('2 : i32, sym_name = "a_cons_prod', '3 : i32, sym_name = "a_cons_prod')
    assert wrong != module
    tools.lowered.write_text(wrong)
    with pytest.raises(BuildRefused, match="the module disagrees with the design") as refused:
        build(KERNEL, "npu1")
    assert "a_cons_prod_lock_0" in str(refused.value)
    assert_nothing_published()
    tools.lowered.write_text(module)
    assert build(KERNEL, "npu1").record.verified.endswith("stream equal")


def test_a_stream_that_is_not_ours_is_refused_and_named(tools: StandIns) -> None:
    words = np.frombuffer(tools.insts.read_bytes(), "<u4").copy()
    words[8] += 1  # a runtime parameter: one step more
    tools.insts.write_bytes(words.tobytes())
    with pytest.raises(BuildRefused, match="the stream disagrees with the design"):
        build(KERNEL, "npu1")
    assert_nothing_published()


def test_a_module_that_cannot_be_read_is_refused(tools: StandIns) -> None:
    tools.lowered.write_text("module { aie.device(npu1) { aie.nonsense } }")
    with pytest.raises(
        BuildRefused,
        match=r"(?s)cannot be run, so nothing is published: .*mlir-aie 1\.3 .* lower designs to",
    ):
        build(KERNEL, "npu1")
    assert_nothing_published()


def test_a_build_without_the_module_is_refused(
    tools: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_FAILS", "forgets")
    with pytest.raises(BuildFailed, match=r"aiecc kept no input_with_addresses\.mlir"):
        build(KERNEL, "npu1")
    assert_nothing_published()


def test_the_command_tells_what_was_shown(tools: StandIns) -> None:
    result = CliRunner().invoke(cli.app, ["build", "matmul_16x16"])
    assert result.exit_code == 0
    assert "84 launches under 12 schedules right" in result.output
    tools.insts.write_bytes(b"\0" * 16)
    failed = CliRunner().invoke(cli.app, ["build", "matmul_16x16", "--force"])
    assert failed.exit_code == 1
    assert "the stream disagrees" in str(failed.exception)
    assert cache.find_built(KERNEL, "npu1").record.verified.startswith("84 launches")  # the first
