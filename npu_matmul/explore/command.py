"""``npu-matmul explore``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from npu_matmul.performance.figures import CLOCKS_GHZ, DEFAULT_CLOCKS
from npu_matmul.target import TARGETS


@click.command()
@click.option("--dtype", type=click.Choice(["int8", "bf16"]), default="int8", show_default=True)
@click.option(
    "--shapes", "named", multiple=True, help="whisper-base (default), or another size, or M,K,N."
)
@click.argument("more", nargs=-1, metavar="[SHAPES]...")
@click.option("--target", type=click.Choice(list(TARGETS)), default="npu1", show_default=True)
@click.option("--clock", type=click.Choice(CLOCKS_GHZ), help=f"In GHz; default: {DEFAULT_CLOCKS}.")
@click.option("--plot", type=click.Path(path_type=Path), help="A folder for the picture.")
@click.option("--json", type=click.Path(path_type=Path), help="A file for all rows.")
@click.option("--markdown", is_flag=True, help="Only the table, as Markdown.")
@click.option("--manifest", is_flag=True, help="Only the kernel.toml of the best that can run.")
def explore(
    dtype: str,
    named: tuple[str, ...],
    more: tuple[str, ...],
    target: str,
    clock: str | None,
    plot: Path | None,
    json: Path | None,
    markdown: bool,
    manifest: bool,
) -> None:
    """Find the kernel that would be fastest for given shapes.

    Models every tile, core grid, buffer depth and type of C that the memory of a core has room for,
    and shows what nothing beats, beside the kernels that were found. Several shapes can follow
    --shapes.
    """
    if markdown and manifest:
        raise click.UsageError("--markdown and --manifest each print one thing only: give one")
    from npu_matmul.explore import run

    clock_hz = None if clock is None else float(clock) * 1e9
    asked = run.Asked(dtype, (*named, *more), target, clock_hz, plot, json)
    run.run(asked, "markdown" if markdown else "manifest" if manifest else "table", Console())
