"""Which way of multiplying is chosen, by what a CPU has and what a variable asks for."""

from __future__ import annotations

import pathlib

import pytest
from numba.core import config

from npu_matmul.host import paths
from npu_matmul.host.paths import PATH_VARIABLE, PORTABLE, choose_path, usable_paths

EVERYTHING = {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16"}


def give(monkeypatch: pytest.MonkeyPatch, features: set[str], asked: str | None = None) -> None:
    monkeypatch.setattr(paths, "cpu_features", lambda: frozenset(features))
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    if asked is not None:
        monkeypatch.setenv(PATH_VARIABLE, asked)


@pytest.mark.parametrize(
    ("features", "int8", "bf16"),
    [
        (EVERYTHING, "avx512vnni", "avx512bf16"),
        (EVERYTHING - {"avx512bf16"}, "avx512vnni", PORTABLE),
        (EVERYTHING - {"avx512vnni"}, "avx2", "avx512bf16"),
        (EVERYTHING - {"avx512bw"}, "avx2", PORTABLE),
        ({"avx2"}, "avx2", PORTABLE),
        (set(), PORTABLE, PORTABLE),
    ],
)
def test_the_best_path_that_the_cpu_has_is_chosen(
    monkeypatch: pytest.MonkeyPatch, features: set[str], int8: str, bf16: str
) -> None:
    give(monkeypatch, features)
    assert (choose_path("int8").name, choose_path("bfloat16").name) == (int8, bf16)
    assert usable_paths("int8")[-1].name == usable_paths("bfloat16")[-1].name == PORTABLE


@pytest.mark.parametrize(
    ("asked", "int8", "bf16"),
    [
        ("avx2", "avx2", "avx512bf16"),
        ("avx512bf16", "avx512vnni", "avx512bf16"),
        (PORTABLE, PORTABLE, PORTABLE),
        ("", "avx512vnni", "avx512bf16"),
    ],
)
def test_the_variable_names_a_path_for_the_operands_that_have_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, int8: str, bf16: str
) -> None:
    give(monkeypatch, EVERYTHING, asked)
    assert (choose_path("int8").name, choose_path("bfloat16").name) == (int8, bf16)


def test_a_path_that_does_not_exist_or_that_the_cpu_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give(monkeypatch, {"avx2"}, "avx1024")
    with pytest.raises(
        ValueError, match=r"'avx1024': there is no such path; known are: avx512vnni"
    ):
        choose_path("int8")
    give(monkeypatch, {"avx2", "avx512f", "avx512bw"}, "avx512vnni")
    with pytest.raises(ValueError, match="this CPU lacks avx512vl, avx512vnni"):
        choose_path("int8")


@pytest.mark.parametrize(
    ("features", "expected"), [(None, set()), ("", set()), ("+avx2,-avx512f", {"avx2"})]
)
def test_a_cpu_that_numba_was_told_to_compile_for_has_only_what_it_was_told(
    monkeypatch: pytest.MonkeyPatch, features: str | None, expected: set[str]
) -> None:
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    assert paths.cpu_features.__wrapped__() == expected


def test_what_llvm_says_of_this_cpu_is_what_the_system_says() -> None:
    words = {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avx2": "avx2"}
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    for feature, flag in words.items():
        assert (feature in paths.cpu_features()) == (flag in flags)
