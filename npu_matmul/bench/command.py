"""``npu-matmul bench``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console


@click.command(short_help="The cpu device against NumPy, PyTorch and ONNX Runtime.")
@click.option(
    "--shapes", "named", multiple=True, help="whisper-base (default), or another size, or M,K,N."
)
@click.argument("more", nargs=-1, metavar="[SHAPES]...")
@click.option("--against", default=None, help="Of numpy,torch,ort; default: those installed.")
@click.option("--encoders", metavar="SIZES", help="Whisper encoders, such as tiny,base.")
@click.option("--threads", default=None, help="Numbers of threads; default: 1,2.")
@click.option("--in-cache", is_flag=True, help="One set of operands, not more than caches hold.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="A folder for pictures, also of strategies."
)
@click.option("--json", type=click.Path(path_type=Path), help="A file for all rows.")
def bench(
    named: tuple[str, ...],
    more: tuple[str, ...],
    against: str | None,
    encoders: str | None,
    threads: str | None,
    in_cache: bool,
    plot: Path | None,
    json: Path | None,
) -> None:
    """Measure the cpu device against np.matmul, PyTorch and ONNX Runtime.

    Speed stands beside accuracy and this CPU's probed peak, on one core and on two threads. Several
    shapes can follow --shapes. --encoders compares whole Whisper encoders, and the functions
    between their products, with those of openai-whisper and transformers. Exit code 1: a result is
    wrong, or not all could be measured.
    """
    from npu_matmul.bench import run
    from npu_matmul.pictures import check_outputs

    console = Console()
    plan = run.plan_of((*named, *more), against, threads, in_cache, encoders)
    check_outputs(plot, json)
    try:
        done = run.run(plan, plot, json, console)
    except KeyboardInterrupt:
        console.print("interrupted: nothing was written half")
        sys.exit(130)
    if not done:
        sys.exit(1)
