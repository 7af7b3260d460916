"""``npu-matmul kernels`` and ``npu-matmul devices``: what was found here."""

from __future__ import annotations

import click
from rich import box
from rich.console import Console
from rich.table import Table

from npu_matmul.device import DEVICES, DeviceError, auto_choice, open_device
from npu_matmul.kernel import kernel_folders, kernels_named, load_variants
from npu_matmul.sequence import MLIR_TYPES

KERNEL_COLUMNS = ("kernel", "variant", "types", "m k n", "cores", "usable")
DEVICE_NOTES = {
    "auto": "an NPU that kernels are for, else the CPU",
    "xrt": "a Ryzen AI NPU through pyxrt",
    "emulated": "the same designs and streams, run on arrays",
    "cpu": "the same numbers, computed on the host",
}

console = Console()


@click.command()
@click.option("--markdown", is_flag=True, help="Only the table, as Markdown.")
def kernels(markdown: bool) -> None:
    """List the kernels that were found, and what each is."""
    rows = _kernel_rows()
    if markdown:
        for row in (KERNEL_COLUMNS, ("---",) * len(KERNEL_COLUMNS), *rows):
            click.echo(f"| {' | '.join(row)} |".replace("| --- ", "|---").replace("--- |", "---|"))
        return
    table = Table(*KERNEL_COLUMNS, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for name in kernel_folders():
        kernel = next(iter(load_variants(name).values()))
        console.print(f"[bold]{name}[/bold]: {kernel.summary} ({', '.join(kernel.targets)})")


@click.command()
def devices() -> None:
    """List the devices, and whether each can be used here."""
    table = Table("device", "usable here", "what it is", box=box.SIMPLE_HEAD)
    for name in DEVICES:
        table.add_row(name, _usable(name), DEVICE_NOTES[name])
    console.print(table)


def _kernel_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kernel in kernels_named():
        types, tile, grid = kernel.types, kernel.tile, kernel.grid
        a, b, c = (MLIR_TYPES[name] for name in (types.a, types.b, types.c))
        rows.append(
            (
                kernel.name,
                kernel.variant,
                f"{a},{b}->{c}",
                f"{tile.m} {tile.k} {tile.n}",
                f"{grid.rows}x{grid.columns}",
                "yes" if kernel.source.is_file() else "no: no source",
            )
        )
    return rows


def _usable(name: str) -> str:
    try:
        found = open_device(auto_choice() if name == "auto" else name)
    except (DeviceError, ValueError) as error:  # ValueError: of a variable in the environment
        return f"no: {error}"
    return f"yes: {found.name}" if name == "auto" else "yes"
