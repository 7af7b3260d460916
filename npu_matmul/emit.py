"""``npu-matmul emit``: what the NPU is given for a product, written to files."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from npu_matmul.kernel import Kernel, load_kernel
from npu_matmul.sequence import SYNTAXES, Syntax
from npu_matmul.target import TARGETS


@click.command()
@click.argument("kernel")
@click.option("--variant", default=None, help="Which variant, where the kernel has several.")
@click.option("--target", default="npu1", show_default=True, type=click.Choice(list(TARGETS)))
@click.option("-m", "rows", type=click.IntRange(1), help="Rows of A.")
@click.option("-k", "depth", type=click.IntRange(1), help="Columns of A, rows of B.")
@click.option("-n", "columns", type=click.IntRange(1), help="Columns of B.")
@click.option(
    "--what",
    type=click.Choice(["design", "mlir", "insts"]),
    default="mlir",
    show_default=True,
    help="The overlay's design, the module with this shape's sequence, or the stream's bytes.",
)
@click.option(
    "--mlir-aie",
    "syntax",
    type=click.Choice(SYNTAXES),
    default="1.3",
    show_default=True,
    help="Releases that read the module: up to 1.3.4, or 1.4 until August 2026.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file; default: print.")
def emit(
    kernel: str,
    variant: str | None,
    target: str,
    rows: int | None,
    depth: int | None,
    columns: int | None,
    what: str,
    syntax: Syntax,
    output: Path | None,
) -> None:
    """Write what the NPU is given for a product (M, K) @ (K, N).

    A shape that needs several launches gets one numbered file for each.
    """
    from npu_matmul.design import design_text

    chosen = load_kernel(kernel, variant)
    if target not in chosen.targets:
        raise click.UsageError(f"{kernel} is for {', '.join(chosen.targets)}, not for {target}")
    if what == "design":
        _write([design_text(chosen, target).encode()], output)
        return
    if rows is None or depth is None or columns is None:
        raise click.UsageError(f"--what {what} needs a shape: give -m, -k and -n")
    if what == "insts" and output is None:
        raise click.UsageError("an instruction stream is binary: give a file with -o")
    _write(_launch_files(chosen, target, (rows, depth, columns), what, syntax), output)


def _launch_files(
    kernel: Kernel, target: str, problem: tuple[int, int, int], what: str, syntax: Syntax
) -> list[bytes]:
    from npu_matmul.design import design_text
    from npu_matmul.launch import launch_sequence
    from npu_matmul.schedule import cover
    from npu_matmul.streams import launch_stream
    from npu_matmul.tiler import TileGrid

    shapes = [launch.shape for launch in cover(TileGrid(kernel, *problem), target=TARGETS[target])]
    if what == "insts":
        return [launch_stream(kernel, shape, TARGETS[target]) for shape in shapes]
    return [
        design_text(
            kernel, target, launch_sequence(kernel, shape, TARGETS[target]), syntax
        ).encode()
        for shape in shapes
    ]


def _write(contents: list[bytes], output: Path | None) -> None:
    if output is None and len(contents) > 1:
        raise click.UsageError(
            f"this shape needs {len(contents)} launches, each with a module of its own: give a "
            "file with -o"
        )
    if output is None:
        click.echo(contents[0].decode(), nl=False)
        return
    digits = len(str(len(contents)))
    for number, content in enumerate(contents, start=1):
        path = output
        if len(contents) > 1:
            path = output.with_name(f"{output.stem}-{number:0{digits}}{output.suffix}")
        path.write_bytes(content)
        Console().print(f"{escape(str(path))}: {len(content):,} B", highlight=False, soft_wrap=True)
