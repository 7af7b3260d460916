"""What an overlay was made from, as hashes, and the name that carries them into the xclbin.

An xclbin names its kernel; ours is named after everything it was made from. So an overlay of other
tile sizes, another design or another source has another name, and a device that asks for the name
of the kernel at hand cannot be given it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

from npu_matmul.build.plan import ALLOCATION, COMPILER_FLAGS, TRIPLES, reference_design
from npu_matmul.design import design_text
from npu_matmul.kernel import Kernel

INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
NOT_BUILT_IN = ("summary", "source", "targets")  # parts of a manifest that no product depends on


def overlay_inputs(kernel: Kernel, target: str) -> dict[str, str]:
    """The SHA-256 of each input of an overlay, tools excepted; raises ``KernelNotBuilt`` without a
    source."""
    source = kernel.require_source()
    manifest = {k: v for k, v in asdict(kernel).items() if k not in NOT_BUILT_IN}
    flags = [TRIPLES[target], *COMPILER_FLAGS, ALLOCATION, kernel.defines]
    inputs = {
        "manifest": _sha256(json.dumps(manifest, sort_keys=True)),
        "design": _sha256(design_text(kernel, target)),
        "reference sequence": _sha256(reference_design(kernel, target)),
        "flags": _sha256(json.dumps(flags)),
        f"source {source.name}": _sha256(source.read_bytes()),
    }
    folder = source.resolve().parent
    for path in included(source):
        inputs[f"included {os.path.relpath(path, folder)}"] = _sha256(path.read_bytes())
    return inputs


def included(source: Path) -> list[Path]:
    """The files that a source includes in quotes, and those that they do, each looked for beside
    the one that names it. What is not there belongs to the toolchain, whose version is an input
    of its own."""
    found: dict[Path, None] = {}
    waiting = [source]
    while waiting:
        file = waiting.pop()
        for name in INCLUDE.findall(file.read_bytes()):
            path = (file.parent / os.fsdecode(name)).resolve()
            if path.is_file() and path not in found:
                found[path] = None
                waiting.append(path)
    return sorted(found)


def overlay_name(inputs: dict[str, str]) -> str:
    """What the overlay's kernel is called inside its xclbin: 16 hexadecimal digits of its inputs'
    hash.

    >>> overlay_name({"manifest": "0"}) == overlay_name({"manifest": "1"})
    False
    """
    return "matmul_" + digest_of(inputs)


def digest_of(table: dict[str, str]) -> str:
    """16 hexadecimal digits that stand for all of a table."""
    return _sha256(json.dumps(table, sort_keys=True))[:16]


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
