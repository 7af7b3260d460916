"""Where the standard toolchain is: mlir-aie, Peano, xclbinutil; and what to install otherwise."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from npu_matmul.build.plan import Tools
from npu_matmul.kernel import KernelNotBuilt

MLIR_AIE_VARIABLE = "MLIR_AIE_INSTALL_DIR"
PEANO_VARIABLE = "PEANO_INSTALL_DIR"
WHEELS = "https://github.com/Xilinx/{}/releases/expanded_assets/{}"
INSTALL_MLIR_AIE = f"pip install mlir_aie -f {WHEELS.format('mlir-aie', 'latest-wheels-4')}"
INSTALL_PEANO = f"pip install llvm-aie -f {WHEELS.format('llvm-aie', 'nightly')}"
XRT_FOLDERS = ("/opt/xilinx/xrt",)
VERSION_TIMEOUT_S = 60.0


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
    mlir_cure = f"{INSTALL_MLIR_AIE}  (or name its folder in ${MLIR_AIE_VARIABLE})"
    peano_cure = f"{INSTALL_PEANO}  (or name its folder in ${PEANO_VARIABLE})"
    parts = [Part("mlir-aie", mlir_aie, mlir_cure)]
    if mlir_aie is not None:
        newer = f"update mlir-aie, releases before March 2026 have no such program: {mlir_cure}"
        parts.append(Part("aiecc", _inside(mlir_aie, "bin/aiecc"), newer))
        parts.append(Part("aie_api headers", _inside(mlir_aie, "include/aie_api"), mlir_cure))
    parts.append(Part("Peano", peano, peano_cure))
    if peano is not None:
        parts.append(Part("clang++ of Peano", _inside(peano, "bin/clang++"), peano_cure))
    parts.append(Part("xclbinutil", _xclbinutil(mlir_aie), "install XRT's utilities"))
    return parts


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
    tools = Tools(
        compiler=found["clang++ of Peano"],
        peano=found["Peano"],
        aiecc=found["aiecc"],
        headers=found["aie_api headers"].parent,
        xclbinutil=found["xclbinutil"],
    )
    programs = {"mlir-aie": tools.aiecc, "Peano": tools.compiler, "xclbinutil": tools.xclbinutil}
    return Toolchain(tools, {name: version_of(path) for name, path in programs.items()})


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


def version_of(program: Path) -> str:
    """What a program says of its version; where it says nothing, its file's hash."""
    try:
        done = subprocess.run(
            [str(program), "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        done = None
    said = " ".join(done.stdout.split()) if done is not None and done.returncode == 0 else ""
    return said or f"sha256 {hashlib.sha256(program.read_bytes()).hexdigest()[:16]}"


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
    named = os.environ.get("XILINX_XRT")
    yield from map(Path, ([named] if named else []) + list(XRT_FOLDERS))
