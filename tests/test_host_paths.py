"""Which way of multiplying is chosen, by what a CPU has and what a variable asks for."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

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
    "settings",
    [
        {"NUMBA_CPU_NAME": "generic"},
        {"NUMBA_CPU_NAME": "znver4"},
        {"NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_FEATURES": "+avx2,+avx512f,-avx512f"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+avx2"},
        {"NUMBA_ENABLE_AVX": "0"},
        {},
    ],
)
def test_the_features_are_those_that_numba_compiles_for(settings: dict[str, str]) -> None:
    """As numba's own code generator says; a path for others would end in an instruction that LLVM
    cannot select."""
    program = (
        "from numba.core.registry import cpu_target\n"
        "from npu_matmul.host.paths import cpu_features\n"
        "listed = cpu_target.target_context.codegen()._get_host_cpu_features().split(',')\n"
        "taken = {word[1:] for word in listed if word[:1] == '-'}\n"
        "assert cpu_features() == {word[1:] for word in listed if word[:1] == '+'} - taken\n"
        "print(*sorted(cpu_features()))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **settings}
    words = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    if "NUMBA_CPU_FEATURES" in settings:
        assert words == [word for word in ("avx2",) if word in settings["NUMBA_CPU_FEATURES"]]
    elif settings.get("NUMBA_CPU_NAME") == "generic" or "NUMBA_ENABLE_AVX" in settings:
        assert not [word for word in words if word.startswith("avx")]
    else:
        assert set(words) == paths.cpu_features()


def test_what_llvm_says_of_this_cpu_is_what_the_system_says() -> None:
    words = {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avx2": "avx2"}
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    for feature, flag in words.items():
        assert (feature in paths.cpu_features()) == (flag in flags)
