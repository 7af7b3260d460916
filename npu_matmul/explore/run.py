"""What ``npu-matmul explore`` does: explores, prints, writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from npu_matmul.explore import picture, table
from npu_matmul.explore.found import explore
from npu_matmul.explore.manifest import manifest
from npu_matmul.explore.model import Products
from npu_matmul.explore.shapes import products_of
from npu_matmul.performance.product import Npu
from npu_matmul.pictures import check_outputs
from npu_matmul.shapes import DEFAULT_SHAPES
from npu_matmul.writing import write_json


@dataclass(frozen=True)
class Asked:
    """The options. Raises ValueError, with what is allowed, where shapes or files cannot be."""

    dtype: str
    shapes: Sequence[str]
    target: str
    clock_hz: float | None
    plot: Path | None
    json: Path | None

    def __post_init__(self) -> None:
        check_outputs(self.plot, self.json)
        _ = self.products

    @property
    def products(self) -> Products:
        return products_of(self.shapes or DEFAULT_SHAPES)


def run(asked: Asked, output: str, console: Console) -> None:
    """Explore and print the ``table``, the ``markdown`` or the ``manifest``; then write files."""
    npu = Npu.named(asked.target, asked.clock_hz)
    errors = Console(stderr=True)
    with errors.status("") as status:
        found = explore(asked.dtype, asked.products, npu, status.update)
    if output == "table":
        table.show(found, console)
    else:
        click.echo(table.markdown(found) if output == "markdown" else manifest(found), nl=False)
    written = [picture.draw(asked.plot, found)] if asked.plot is not None else []
    if asked.json is not None:
        write_json(asked.json, table.content(found))
        written.append(asked.json)
    for path in written:
        errors.print(f"written: {escape(str(path))}", highlight=False, soft_wrap=True)
