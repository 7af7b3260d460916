"""The command line, ``npu-matmul``; long commands have modules of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from npu_matmul import __version__
from npu_matmul.build.command import build
from npu_matmul.device import DEVICES, DeviceError, UnknownDevice, auto_choice, open_device
from npu_matmul.doctor.command import doctor
from npu_matmul.kernel import (
    Kernel,
    KernelNotBuilt,
    ManifestError,
    UnknownKernel,
    kernel_folders,
    load_kernel,
    load_variants,
)
from npu_matmul.target import TARGETS
from npu_matmul.whisper.commands import encode, transcribe

if TYPE_CHECKING:
    from npu_matmul.demo import Outcome

USER_ERRORS = (
    *(DeviceError, UnknownDevice, UnknownKernel, KernelNotBuilt, ManifestError),
    *(ValueError, OSError, ModuleNotFoundError),
)
DEVICE_NOTES = {
    "auto": "an NPU where there is one, else the CPU",
    "xrt": "a Ryzen AI NPU through pyxrt",
    "emulated": "the same designs and streams, run on arrays",
    "cpu": "the same numbers, computed on the host",
}

console = Console()


def main() -> None:
    """Run the command line; what a user can cure ends with one line and exit code 2."""
    try:
        app()
    except USER_ERRORS as error:
        message = f"[red]error:[/red] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="npu-matmul")
def app() -> None:
    """np.matmul on AMD Ryzen AI NPUs."""


app.add_command(build)
app.add_command(doctor)
app.add_command(encode)
app.add_command(transcribe)


@app.command()
@click.option("--device", default="emulated", show_default=True, help="Where to compute.")
@click.option("--kernel", default=None, help="Which kernel; default: every one for int8.")
def demo(device: str, kernel: str | None) -> None:
    """Speech through the projections of a Whisper-tiny layer, by all three strategies, then
    through an encoder of base size (not with --kernel).

    Exit code 1 when a single value differs from np.matmul, or from the CPU's.
    """
    from npu_matmul import demo as demonstration

    console.print("Making int8 activations of the shipped recording and seeded weights ...")
    inputs = demonstration.make_inputs()
    rows, state = inputs.activations.shape
    console.print(
        f"{len(inputs.weights)} products ({rows}, {state}) @ ({state}, {state}), device {device}\n"
    )
    outcomes: list[Outcome] = []
    for name in [kernel] if kernel or device == "cpu" else demonstration.kernels():
        with _progress() as progress:
            found = demonstration.run(inputs, device, name, _Bars(progress, len(inputs.weights)))
        console.print(_outcome_table(found, device))
        outcomes += found
    if device == "emulated":
        console.print("Seconds are this host's: of an NPU's speed they say nothing.\n")
    wrong = sum(outcome.wrong for outcome in outcomes)
    values = sum(outcome.values for outcome in outcomes)
    if wrong:
        console.print(f"[red]{wrong:,} of {values:,} values differ from np.matmul[/red]")
        sys.exit(1)
    console.print(f"[green]all {values:,} values equal np.matmul's, bit for bit[/green]\n")
    if kernel is None and not _encoder_is_right():
        sys.exit(1)


def _encoder_is_right() -> bool:
    """Show the second part of the demonstration; whether the emulated layer equals the CPU's."""
    from npu_matmul.whisper import demo as demonstration

    console.print(f"Making an encoder of {demonstration.SIZE} size, int8, seeded weights ...")
    with console.status("encoding"):
        shown = demonstration.run(auto_choice())
    demonstration.show(shown, console)
    return not shown.layer_wrong


KERNEL_COLUMNS = ("kernel", "variant", "types", "m k n", "cores", "usable")


@app.command()
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


def _kernel_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in kernel_folders():
        for kernel in load_variants(name).values():
            types, tile, grid = kernel.types, kernel.tile, kernel.grid
            rows.append(
                (
                    name,
                    kernel.variant,
                    f"{_short(types.a)},{_short(types.b)}->{_short(types.c)}",
                    f"{tile.m} {tile.k} {tile.n}",
                    f"{grid.rows}x{grid.columns}",
                    "yes" if kernel.source.is_file() else "no: no source",
                )
            )
    return rows


@app.command()
def devices() -> None:
    """List the devices, and whether each can be used here."""
    table = Table("device", "usable here", "what it is", box=box.SIMPLE_HEAD)
    for name in DEVICES:
        table.add_row(name, _usable(name), DEVICE_NOTES[name])
    console.print(table)


@app.command()
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
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file; default: print.")
def emit(
    kernel: str,
    variant: str | None,
    target: str,
    rows: int | None,
    depth: int | None,
    columns: int | None,
    what: str,
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
    _write(_launch_files(chosen, target, (rows, depth, columns), what), output)


@app.command()
@click.argument("what", metavar="[KERNEL | FILE.mlir]", required=False)
@click.option("--variant", default=None, help="Only this variant of the kernel.")
@click.option(
    "--target", default=None, type=click.Choice(list(TARGETS)), help="Default: the kernel's own."
)
@click.option(
    "--scheme",
    type=click.Choice(["basic-sequential", "bank-aware"]),
    default="basic-sequential",
    show_default=True,
    help="How the toolchain allocates memory.",
)
def check(what: str | None, variant: str | None, target: str | None, scheme: str) -> None:
    """Check designs against the rules, and show their memory maps.

    Without an argument all kernels are checked. Exit code 1 when a rule is broken, 2 when a design
    cannot be read.
    """
    from npu_matmul import check_report

    if what is not None and what.endswith(".mlir"):
        from npu_matmul.design_rules import check_file

        if variant is not None or target is not None:
            raise click.UsageError("a file has no variants and names its target itself")
        found = [check_file(Path(what), scheme)]
    else:
        from npu_matmul.kernel_rules import check_kernel

        if what is None and variant is not None:
            raise click.UsageError("--variant needs a KERNEL")
        found = [
            check_kernel(kernel, name, scheme)
            for kernel in _variants(what, variant)
            for name in ([target] if target else kernel.targets)
        ]
    for checked in found:
        check_report.show(checked, console)
    if any(checked.violations for checked in found):
        sys.exit(1)


@app.command()
@click.argument("module", metavar="FILE.mlir", type=click.Path(path_type=Path))
@click.option(
    "--insts",
    type=click.Path(path_type=Path),
    help="An instruction stream: of the module's sequence, or the launch to run without one.",
)
@click.option(
    "--schedules",
    "count",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Orders in which the parts of the array come to move: 12 fixed ones, then random ones.",
)
@click.option("--seed", type=click.IntRange(0), help="Of operands and schedules; default: drawn.")
def verify(module: Path, insts: Path | None, count: int, seed: int | None) -> None:
    """Run a design, or what the toolchain made of it, and compare it with NumPy's product.

    Exit code 1 when it is wrong under any schedule, 2 when it cannot be read.
    """
    from npu_matmul.verify import command

    if not command.run(module, insts, count, seed, console):
        sys.exit(1)


@app.command()
@click.option(
    "--shapes", "named", multiple=True, help="whisper-base (default), whisper-large, or M,K,N."
)
@click.argument("more", nargs=-1, metavar="[SHAPES]...")
@click.option("--against", default=None, help="Of numpy,torch,ort; default: those installed.")
@click.option("--threads", default="1,2", show_default=True, help="Numbers of threads.")
@click.option("--in-cache", is_flag=True, help="One set of operands, not more than caches hold.")
@click.option("--plot", type=click.Path(path_type=Path), help="A folder for pictures.")
@click.option("--json", type=click.Path(path_type=Path), help="A file for all rows.")
def bench(
    named: tuple[str, ...],
    more: tuple[str, ...],
    against: str | None,
    threads: str,
    in_cache: bool,
    plot: Path | None,
    json: Path | None,
) -> None:
    """Measure the cpu device against np.matmul, PyTorch and ONNX Runtime.

    Speed stands beside accuracy and this CPU's probed peak, on one core and on two threads. Several
    shapes can follow --shapes.
    """
    from npu_matmul.bench import command

    plan = command.plan_of((*named, *more), against, threads, in_cache)
    command.check_outputs(plot, json)
    try:
        command.run(plan, plot, json, console)
    except KeyboardInterrupt:
        console.print("interrupted: nothing was written half")
        sys.exit(130)


def _variants(name: str | None, variant: str | None) -> list[Kernel]:
    """The named variant, all variants of a kernel, or those of every kernel."""
    if name is not None and variant is not None:
        return [load_kernel(name, variant)]
    names = kernel_folders() if name is None else [name]
    return [kernel for each in names for kernel in load_variants(each).values()]


def _launch_files(
    kernel: Kernel, target: str, problem: tuple[int, int, int], what: str
) -> list[bytes]:
    from npu_matmul.design import design_text
    from npu_matmul.schedule import cover, launch_sequence
    from npu_matmul.streams import launch_stream
    from npu_matmul.tiler import TileGrid

    shapes = [launch.shape for launch in cover(TileGrid(kernel, *problem))]
    if what == "insts":
        return [launch_stream(kernel, shape) for shape in shapes]
    return [
        design_text(kernel, target, launch_sequence(kernel, shape)).encode() for shape in shapes
    ]


def _write(contents: list[bytes], output: Path | None) -> None:
    if output is None:
        for content in contents:
            click.echo(content.decode(), nl=False)
        return
    digits = len(str(len(contents)))
    for number, content in enumerate(contents, start=1):
        path = output
        if len(contents) > 1:
            path = output.with_name(f"{output.stem}-{number:0{digits}}{output.suffix}")
        path.write_bytes(content)
        console.print(f"{path}: {len(content):,} B", highlight=False, soft_wrap=True)


class _Bars:
    """A progress bar per strategy, shown from its first product on."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._bars: dict[str, TaskID] = {}

    def __call__(self, strategy: str, done: int) -> None:
        if strategy not in self._bars:
            self._bars[strategy] = self._progress.add_task(strategy, total=self._total)
        self._progress.update(self._bars[strategy], completed=done)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("products"),
        TimeElapsedColumn(),
        console=console,
    )


def _outcome_table(outcomes: list[Outcome], device: str) -> Table:
    """One column a strategy: what the device counted, then where the host's time went."""
    baseline = outcomes[0]
    stages = dict.fromkeys(stage for outcome in outcomes for stage in outcome.seconds)
    table = Table(
        title=f"kernel {baseline.kernel or 'none'}, device {device}, "
        f"padding {baseline.padding:.1%}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.strategy, justify="right")

    def row(heading: str, cell: Callable[[Outcome], str], end_section: bool = False) -> None:
        table.add_row(heading, *map(cell, outcomes), end_section=end_section)

    row("launches", lambda o: f"{o.counts['launches']:,}")
    row("syncs to device", lambda o: f"{o.counts['syncs_to_device']:,}")
    row("syncs from device", lambda o: f"{o.counts['syncs_from_device']:,}")
    row("bytes to device", lambda o: f"{o.counts['bytes_to_device']:,}")
    row("bytes from device", lambda o: f"{o.counts['bytes_from_device']:,}", end_section=True)
    for stage in stages:
        row(f"host seconds, {stage}", lambda o, stage=stage: f"{o.seconds[stage]:.4f}")  # type: ignore[misc]
    row("host seconds, total", lambda o: f"{o.wall_s:.4f}", end_section=True)
    row("fewer launches by", lambda o: _ratio(baseline.counts["launches"], o.counts["launches"]))
    row("fewer host seconds by", lambda o: _ratio(baseline.wall_s, o.wall_s))
    row("equal to np.matmul", lambda o: "no" if o.wrong else "yes")
    return table


def _ratio(baseline: float, value: float) -> str:
    return f"{baseline / value:,.1f}x" if value else "-"


def _usable(name: str) -> str:
    if name == "auto":
        return f"yes: {auto_choice()}"
    try:
        open_device(name)
    except DeviceError as error:
        return f"no: {error}"
    return "yes"


def _short(name: str) -> str:
    return {"bfloat16": "bf16", "float32": "f32", "int32": "i32", "int8": "i8"}[name]
