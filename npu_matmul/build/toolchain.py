"""Where the standard toolchain is: mlir-aie, Peano, xclbinutil; and what to install otherwise."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from npu_matmul.build.plan import OUTPUTS, Tools
from npu_matmul.kernel import KernelNotBuilt

MLIR_AIE_VARIABLE = "MLIR_AIE_INSTALL_DIR"
PEANO_VARIABLE = "PEANO_INSTALL_DIR"
XRT_VARIABLE = "XILINX_XRT"
WHEELS = "https://github.com/Xilinx/{}/releases/expanded_assets/{}"
INSTALL_MLIR_AIE = f"pip install mlir_aie==1.3.4 -f {WHEELS.format('mlir-aie', 'v1.3.4')}"
INSTALL_PEANO = f"pip install llvm-aie -f {WHEELS.format('llvm-aie', 'nightly')}"
XRT_FOLDERS = ("/opt/xilinx/xrt",)
VERSION_TIMEOUT_S = 60.0
AIE_VERSION = "--aie-version"  # where --version tells LLVM's


class ToolchainMissing(KernelNotBuilt):
    """Part of the toolchain is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Part:
    """One part of the toolchain: where it is, or None and what to do about it."""

    name: str
    path: Path | None
    cure: str


@dataclass(frozen=True)
class Toolchain:
    """All parts, and the versions that a build depends on."""

    tools: Tools
    versions: dict[str, str]


def survey() -> list[Part]:
    """Every part of the toolchain, found or not; of what is not there, no parts of its own."""
    mlir_aie = installed("mlir_aie", MLIR_AIE_VARIABLE)
    peano = installed("llvm-aie", PEANO_VARIABLE)
    mlir_cure = _cure(INSTALL_MLIR_AIE, MLIR_AIE_VARIABLE)
    peano_cure = _cure(INSTALL_PEANO, PEANO_VARIABLE)
    parts = [Part("mlir-aie", mlir_aie, mlir_cure)]
    if mlir_aie is not None:
        newer = f"update mlir-aie, releases before March 2026 have no such program: {mlir_cure}"
        aiecc = _inside(mlir_aie, "bin/aiecc")
        parts.append(Part("aiecc", aiecc, newer))
        if aiecc is not None and options_of(aiecc).isdisjoint(OUTPUTS):
            other = f"{aiecc} does not run, or is of a release that is not known here: {mlir_cure}"
            parts.append(Part("an aiecc with known options", None, other))
        parts.append(Part("aie_api headers", _inside(mlir_aie, "include/aie_api"), mlir_cure))
    parts.append(Part("Peano", peano, peano_cure))
    if peano is not None:
        parts.append(Part("clang++ of Peano", _inside(peano, "bin/clang++"), peano_cure))
    utilities = "install XRT's utilities (in Ubuntu: libxrt-utils)"
    parts.append(Part("xclbinutil", _xclbinutil(mlir_aie), _misnamed(XRT_VARIABLE) or utilities))
    return parts


def _cure(install: str, variable: str) -> str:
    return _misnamed(variable) or f"{install}  (or name its folder in ${variable})"


def _misnamed(variable: str) -> str:
    """What to do about a variable that names no folder; nothing where it does, or is not set."""
    named = os.environ.get(variable)
    if not named or Path(named).is_dir():
        return ""
    return f"${variable} is {named!r}, which is no folder: correct it, or unset it"


def find_toolchain() -> Toolchain:
    """The toolchain; raises :class:`ToolchainMissing` naming every part that is not there."""
    parts = survey()
    missing = [part for part in parts if part.path is None]
    if missing:
        cures = dict.fromkeys(part.cure for part in missing)
        raise ToolchainMissing(
            f"the toolchain lacks {', '.join(part.name for part in missing)}:\n  "
            + "\n  ".join(cures)
        )
    found = {part.name: part.path for part in parts if part.path is not None}
    options = options_of(found["aiecc"])
    tools = Tools(
        compiler=found["clang++ of Peano"],
        peano=found["Peano"],
        aiecc=found["aiecc"],
        headers=found["aie_api headers"].parent,
        xclbinutil=found["xclbinutil"],
        options=options,
    )
    versions = {
        "mlir-aie": version_of(tools.aiecc, AIE_VERSION if AIE_VERSION in options else "--version"),
        "Peano": version_of(tools.compiler),
        "xclbinutil": version_of(tools.xclbinutil),
    }
    return Toolchain(tools, versions)


def installed(package: str, variable: str) -> Path | None:
    """The folder that a variable names, else that of the Python package: its programs lie in a
    folder of the package's name."""
    named = os.environ.get(variable)
    if named:
        return Path(named).resolve() if Path(named).is_dir() else None
    try:
        folder = importlib.metadata.distribution(package).locate_file(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(folder)) if Path(str(folder)).is_dir() else None


def version_of(program: Path, option: str = "--version") -> str:
    """What a program says of its version; where it says nothing, its file's hash."""
    said = " ".join(_said(program, option).split())
    return said or f"sha256 {hashlib.sha256(program.read_bytes()).hexdigest()[:16]}"


def options_of(aiecc: Path) -> frozenset[str]:
    """The options that aiecc lists; none where it does not run."""
    return frozenset(re.findall(r"--[a-z][\w-]*", _said(aiecc, "--help")))


def _said(program: Path, option: str) -> str:
    """What a program prints for an option; nothing where it fails."""
    try:
        done = subprocess.run(
            [str(program), option],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def search_folders(tools: Tools) -> list[str]:
    """Folders that aiecc must find its helpers in, before those of ``$PATH``."""
    return [str(tools.aiecc.parent), str(tools.xclbinutil.parent)]


def _inside(folder: Path | None, name: str) -> Path | None:
    return folder / name if folder is not None and (folder / name).exists() else None


def _xclbinutil(mlir_aie: Path | None) -> Path | None:
    for folder in _xrt_folders():
        if (folder / "bin" / "xclbinutil").is_file():
            return folder / "bin" / "xclbinutil"
    on_path = shutil.which("xclbinutil")
    return Path(on_path) if on_path else _inside(mlir_aie, "bin/xclbinutil")


def _xrt_folders() -> Iterator[Path]:
    named = os.environ.get(XRT_VARIABLE)
    yield from map(Path, ([named] if named else []) + list(XRT_FOLDERS))
