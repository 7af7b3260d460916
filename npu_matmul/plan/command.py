"""``npu-matmul plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from npu_matmul.performance.figures import CLOCKS_GHZ, DEFAULT_CLOCKS
from npu_matmul.target import TARGETS
from npu_matmul.whisper.dimensions import SIZES

DTYPES = ("int8", "bf16", "bf16x3", "float-int8")
# What can be planned, and the options that go with it.
OPTIONS = {
    "shape": ["dtype", "target", "clock", "kernel", "strategy", "resident", "no_host", "json_file"],
    "whisper": ["dtype", "target", "clock", "no_host", "json_file"],
    "published": ["plot", "json_file"],
    "figures": ["target", "json_file"],
}
SHOWN = {"no_host": "no-host", "json_file": "json"}


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
    help=f"Of the array, in GHz; default: {DEFAULT_CLOCKS}.",
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
    at the default clock, and for many rows where B is resident. Times of the NPU are
    modelled from published measurements; those of the host's stages and of the CPU are measured
    here.
    """
    from npu_matmul.plan import run

    kinds = [kind for kind in OPTIONS if given[kind]]
    if len(kinds) != 1:
        raise click.UsageError("give M K N, or one of --whisper, --published and --figures")
    (kind,) = kinds
    if kind == "shape" and len(given["shape"]) != 3:
        raise click.UsageError(f"M K N are three numbers; {len(given['shape'])} were given")
    context = click.get_current_context()
    for name in given:
        given_here = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given_here and name != kind and name not in OPTIONS[kind]:
            what = "M K N" if kind == "shape" else f"--{kind}"
            raise click.UsageError(f"--{SHOWN.get(name, name)} does not go with {what}")
    run.run(Console(), **given)
