"""``npu-matmul plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from npu_matmul.performance.figures import CLOCKS_GHZ
from npu_matmul.target import TARGETS
from npu_matmul.whisper.dimensions import SIZES

DTYPES = ("int8", "bf16", "bf16x3", "float-int8")


@click.command()
@click.argument("shape", nargs=-1, metavar="[M K N]", type=click.IntRange(min=1))
@click.option("--whisper", type=click.Choice(list(SIZES)), help="An encoder instead of a product.")
@click.option("--published", is_flag=True, help="The model against what others measured.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="int8",
    show_default=True,
    help="int8 operands, or floats as bf16, as three bf16 terms, or quantised (float-int8).",
)
@click.option("--target", type=click.Choice(list(TARGETS)), default="npu1", show_default=True)
@click.option(
    "--clock",
    type=click.Choice(CLOCKS_GHZ),
    help="Of the array, in GHz; default: the target's fastest.",
)
@click.option("--kernel", help="This kernel, not the one of the least modelled time.")
@click.option("--strategy", help="This strategy, likewise.")
@click.option("--resident", is_flag=True, help="B is packed and on the device, as weights are.")
@click.option("--no-host", is_flag=True, help="Do not measure this host's stages and its CPU.")
@click.option("--figures", is_flag=True, help="The model's constants, with their sources.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Draw --published.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write FILE as well.",
)
def plan(**given: Any) -> None:
    """Model what a product would take on an NPU.

    The product is (M, K) @ (K, N). Kernel and strategy are those that npu_matmul would choose:
    at the target's fastest clock, and for many rows where B is resident. Times of the NPU are
    modelled from published measurements; those of the host's stages and of the CPU are measured
    here.
    """
    from npu_matmul.plan import run

    kinds = [bool(given["shape"]), bool(given["whisper"]), given["published"], given["figures"]]
    if sum(kinds) != 1:
        raise click.UsageError("give M K N, or one of --whisper, --published and --figures")
    if given["shape"] and len(given["shape"]) != 3:
        raise click.UsageError(f"M K N are three numbers; {len(given['shape'])} were given")
    if given["plot"] and not given["published"]:
        raise click.UsageError("--plot goes with --published")
    run.run(Console(), **given)
