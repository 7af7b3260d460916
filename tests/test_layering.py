"""A module imports only from its own layer or a lower one, and importing the package is light."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import npu_matmul

PACKAGE = Path(npu_matmul.__file__).parent
NAME = PACKAGE.name

# From the ground up; a name with a dot at its end stands for all modules of that package.
LAYERS = [
    (
        "vocabulary",
        ["kernel", "kernel_watch", "target", "sequence", "overlay", "report", "violation"],
    ),
    ("vocabulary", ["writing", "progress", "numbers", "timeline", "timeline."]),
    (
        "vocabulary",
        [
            "mlir",
            "mlir.directives",
            "mlir.constants",
            "mlir.descriptor_syntax",
            "mlir.aie",
            "mlir.aiex",
        ],
    ),
    ("vocabulary", ["mlir.aie_lowered"]),
    ("pure", ["mlir.reader", "mlir.elaborate", "tiler", "accumulate", "precision", "operands"]),
    ("pure", ["design", "launch", "schedule", "instructions", "stream_rules"]),
    ("pure", ["assemble", "streams", "emulator."]),
    ("pure", ["wiring_rules", "transfer_rules", "layout_rules", "memory_rules", "design_rules"]),
    ("pure", ["kernel_rules", "symbol_rules", "lowering", "memory_map", "balance"]),
    ("pure", ["host", "host."]),
    ("pure", ["performance", "performance.figures", "performance.array"]),
    ("pure", ["performance.published", "performance.original"]),
    ("pure", ["lowered.", "verify."]),
    ("pure", ["build", "build.plan", "build.identity", "build.cache"]),
    ("device seam", ["device.errors", "device.base", "device.buffer", "device.buffer_pool"]),
    ("device seam", ["device.npu", "device"]),
    ("devices", ["device."]),
    ("strategies", ["strategies", "choose", "performance.host", "performance.product"]),
    ("call", ["call", "packed", "quick", "matmul"]),
    ("applications", [""]),
]
RANKS = {name: rank for rank, name in enumerate(dict(LAYERS))}
OPENS_LAZILY = {("device", "device.emulated"), ("device", "device.cpu"), ("device", "device.xrt")}
EXTRAS = {"torch", "whisper", "safetensors", "soundfile", "soxr", "distributed"}
HEAVY = ["numba", "xdsl", "torch", "pyxrt"]


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str  # within the package: without its name; else the top-level name
    inside: bool  # of the package
    lazy: bool  # within a function
    typed: bool  # for readers of types only: nothing is imported
    line: int


def modules() -> dict[str, Path]:
    """Every module's dotted name within the package, "" for the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def layer(module: str) -> int:
    for name, members in LAYERS:
        for member in members:
            prefix = member.endswith(".") or not member
            if module == member.rstrip(".") or (prefix and module.startswith(member)):
                return RANKS[name]
    raise AssertionError("the last layer takes every module")


def target_of(dotted: str, name: str | None) -> str:
    """The module that ``import dotted`` or ``from dotted import name`` executes."""
    inner = dotted.removeprefix(NAME).removeprefix(".")
    if name is None:
        return inner
    if ".".join(filter(None, (inner, name))) in MODULES:
        return ".".join(filter(None, (inner, name)))
    if not inner:
        return npu_matmul._PLACES.get(name, "")
    return inner


def imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node, dotted, name, lazy, typed in _imports(tree, lazy=False, typed=False):
        top = dotted.partition(".")[0]
        imported = target_of(dotted, name) if top == NAME else top
        yield Import(module, imported, top == NAME, lazy, typed, node.lineno)


Found = tuple[ast.Import | ast.ImportFrom, str, str | None, bool, bool]


def _imports(node: ast.AST, lazy: bool, typed: bool) -> Iterator[Found]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield child, alias.name, None, lazy, typed
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute here"
            for alias in child.names:
                yield child, child.module or "", alias.name, lazy, typed
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from _imports(child, lazy or function, typed or types)


EVERY = [found for module in MODULES for found in imports_of(module)]
ALL = [found for found in EVERY if not found.typed]
INSIDE = [found for found in ALL if found.inside and found.imported]  # the package itself is empty
KNOWN = [found for found in EVERY if found.inside and found.imported and found.importer]


def test_the_modules_are_found_and_their_imports_seen() -> None:
    """Else the tests below would hold of nothing."""
    assert {"", "matmul", "device", "device.cpu", "mlir.aie", "emulator.machine"} <= set(MODULES)
    seen = {(found.importer, found.imported) for found in INSIDE}
    assert ("matmul", "call") in seen
    assert ("launch", "design") in seen  # from the package itself
    assert ("device", "device.cpu") in seen  # within a function
    assert [layer(m) for m in ("kernel", "tiler", "device", "device.cpu", "choose", "matmul")] == [
        *range(6)
    ]
    assert (
        layer("whisper.model")
        == layer("integrations.torch")
        == layer("cli")
        == layer("")
        == RANKS["applications"]
    )


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_a_module_imports_only_from_its_layer_or_below(module: str) -> None:
    upward = [
        f"{module} (line {found.line}) imports {found.imported}"
        for found in KNOWN
        if found.importer == module
        and layer(found.imported) > layer(module)
        and not (found.lazy and (module, found.imported) in OPENS_LAZILY)
    ]
    assert not upward


def test_the_device_seam_opens_its_devices_only_within_a_function() -> None:
    upward = [f for f in INSIDE if f.importer == "device" and layer(f.imported) > layer("device")]
    assert {f.imported for f in upward} == {"device.emulated", "device.cpu", "device.xrt"}
    assert all(found.lazy for found in upward)


def test_no_module_knows_itself_round_a_circle() -> None:
    """Imports within functions and for types alone count too."""
    edges = {module: set[str]() for module in MODULES}
    for found in KNOWN:
        edges[found.importer].add(found.imported)
    assert "device.xrt" in edges["device"]  # within a function
    assert "doctor.checks" in edges["doctor.command"]  # for types

    seen: set[str] = set()  # and all below them: no way from there leads back

    def below(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in seen:
            for imported in edges[module]:
                below(imported, (*path, module))
            seen.add(module)

    for module in MODULES:
        below(module, ())


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    assert not [found for found in INSIDE if found.importer == ""]


def test_what_extras_install_is_imported_on_use_only() -> None:
    """In functions; but the integration with torch is itself imported on use."""
    early = {found.importer for found in ALL if found.imported in EXTRAS and not found.lazy}
    assert early == {"integrations.torch", "integrations.torch_layers"}
    assert {found.imported for found in ALL} >= EXTRAS
    integrating = [
        found
        for found in INSIDE
        if found.imported.startswith("integrations.") and found.importer not in early
    ]
    assert integrating and all(found.lazy for found in integrating)


def test_the_command_line_loads_nothing_heavy_before_a_command_needs_it() -> None:
    loaded = loaded_by(f"import {NAME}.cli, {NAME}.whisper; dir({NAME}.whisper)")
    assert not {"xdsl", "torch", "pyxrt"} & set(loaded)


def test_encoding_needs_no_torch() -> None:
    modules = f"{NAME}.whisper.checkpoint, {NAME}.whisper.encode, {NAME}.whisper.spread"
    assert not {"xdsl", "torch", "pyxrt"} & set(loaded_by(f"import {modules}"))


def test_only_the_device_of_that_name_may_import_xrts_binding() -> None:
    importers = {found.importer for found in ALL if found.imported == "pyxrt"}
    assert importers == {"device.xrt"}


@cache
def loaded_by(statements: str) -> list[str]:
    """What a fresh interpreter has loaded of the heavy packages after these statements."""
    script = f"import json, sys\n{statements}\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    names = set(json.loads(done.stdout.splitlines()[-1]))
    return [name for name in HEAVY if name in names]


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by(f"import {NAME}; dir({NAME})") == []


def test_describing_a_kernel_or_opening_the_cpu_needs_no_mlir() -> None:
    assert loaded_by(f"from {NAME} import load_kernel; load_kernel('matmul_16x16')") == []
    assert "xdsl" not in loaded_by(f"from {NAME} import open_device; open_device('cpu')")


def test_a_product_on_the_cpu_reads_no_design() -> None:
    program = (
        "import numpy as np; from npu_matmul import npu_matmul; a = np.ones((2, 2), np.int8); "
        "npu_matmul(a, a, device='cpu')"
    )
    assert not {"xdsl", "torch", "pyxrt"} & set(loaded_by(program))
