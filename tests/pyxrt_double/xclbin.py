"""The double's xclbin: a container that names its kernel and holds the design that runs.

Real ones begin with the same magic. The design in it is what the double runs, whatever the
caller's manifest says: an overlay that does not fit computes wrong products, as on hardware.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npu_matmul.design import design_text
from npu_matmul.kernel import CoreGrid, Depths, Kernel, Mmul, Symbols, TileShape, Types

MAGIC = b"xclbin2\0"
ARGUMENTS = 8  # opcode, instructions, words, bo0 to bo4: what aiecc describes
PARTS = {
    "types": Types,
    "tile": TileShape,
    "mmul": Mmul,
    "grid": CoreGrid,
    "depths": Depths,
    "symbols": Symbols,
}


def xclbin_bytes(
    kernel: Kernel, target: str, name: str, design: str | None = None, arguments: int = ARGUMENTS
) -> bytes:
    manifest = {**asdict(kernel), "source": kernel.source.name}
    table = {
        "uuid": str(uuid.uuid4()),
        "kernels": [[name, arguments]],
        "design": design or design_text(kernel, target),
        "manifest": manifest,
    }
    return MAGIC + json.dumps(table).encode()


def read_xclbin(path: str) -> dict[str, Any]:
    content = Path(path).read_bytes()
    if not content.startswith(MAGIC):
        raise ValueError
    table: dict[str, Any] = json.loads(content[len(MAGIC) :])
    return table


def kernel_of(manifest: dict[str, Any]) -> Kernel:
    parts = {key: kind(**manifest[key]) for key, kind in PARTS.items()}
    rest = {k: v for k, v in manifest.items() if k not in parts}
    return Kernel(**{**rest, **parts, "source": Path(rest["source"]), "targets": ()})
