"""``npu-matmul encode`` and ``npu-matmul transcribe``."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from npu_matmul.device import DEVICES, open_device
from npu_matmul.progress import progress_bars
from npu_matmul.whisper.dimensions import SIZES
from npu_matmul.writing import whole_file

if TYPE_CHECKING:
    from npu_matmul.whisper.encode import FileReport, Job, Settings

console = Console()

PRECISION_HELP = (
    "bf16, bf16x3 or int8 for every projection, or PATTERN=PRECISION for those that match, like "
    "'blocks.0.*=bf16' or '*.mlp.2=bf16'. May be repeated; the last that matches decides."
)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def _encoder_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that both commands have."""
    options: list[Option] = [
        click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True),
        click.option("--precision", multiple=True, default=["bf16"], help=PRECISION_HELP),
        click.option(
            "--attention",
            type=click.Choice(["auto", "host", "device"]),
            default="auto",
            show_default=True,
            help="Where the products inside attention are computed; auto: where they are faster, "
            "once for all files, or on each of Dask's workers.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("audio", nargs=-1, required=True, metavar="AUDIO...")
@click.option("--weights", metavar="PATH", help="Hugging Face directory, .safetensors or .pt file.")
@click.option(
    "--random", "size", type=click.Choice(list(SIZES)), help="Seeded weights, for trying speed."
)
@_encoder_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The .npz file for the features, or a directory: needed where there are several AUDIO.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="How many files at once.  [default: one per core; one in all on an NPU]",
)
@click.option("--dask", metavar="ADDRESS", help="Encode on the workers of a Dask scheduler.")
def encode(
    audio: tuple[str, ...],
    weights: str | None,
    size: str | None,
    device: str,
    precision: tuple[str, ...],
    attention: str,
    output: Path | None,
    processes: int | None,
    dask: str | None,
) -> None:
    """Whisper encoder features of audio files.

    Each file is taken in windows of 30 s; memory does not grow with its length. The .npz holds
    features (windows, 1500, states), seconds, and weights: where the encoder's are from.

    Exit code 1 when a file failed, 2 when none could be tried.
    """
    from npu_matmul.whisper.encode import Settings, decided

    if (weights is None) == (size is None):
        raise click.UsageError("give --weights PATH, or --random SIZE to try speed")
    if dask and processes:
        raise click.UsageError("--processes is for this machine, --dask for a cluster's workers")
    jobs = _jobs(audio, output)
    if dask is None:  # once, here, and not in each process
        device = open_device(device).name
    settings = Settings(weights, size, device, _precision_pairs(precision), attention=attention)
    if dask is None:
        settings = decided(settings)
    if size is not None:
        _say_that_it_is_random(size)
    processes = processes or _default_processes(device, jobs)
    start = time.perf_counter()
    reports = list(_encoded(settings, jobs, processes, dask))
    wall_s = time.perf_counter() - start
    order = {job.audio: place for place, job in enumerate(jobs)}
    reports.sort(key=lambda report: order.get(report.audio, len(order)))
    several = "all workers" if dask else f"{processes} processes" if processes > 1 else ""
    show(reports, console, wall_s, several)
    for decision in settings.decided:
        console.print(str(decision), highlight=False)
    if size is not None:
        _say_that_it_is_random(size)
    if any(report.error for report in reports):
        sys.exit(1)


@click.command(short_help="Text of an audio file, by openai-whisper's decoder.")
@click.argument("audio")
@click.option(
    "--weights", required=True, metavar="PATH", help="Hugging Face directory, or .pt file."
)
@_encoder_options
@click.option("--language", help="For example en; default: detected.")
@click.option("--task", type=click.Choice(["transcribe", "translate"]), default="transcribe")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A file that ends in .txt, .srt, .vtt, .tsv or .json; default: print.",
)
def transcribe(
    audio: str,
    weights: str,
    device: str,
    precision: tuple[str, ...],
    attention: str,
    language: str | None,
    task: str,
    output: Path | None,
) -> None:
    """Text of an audio file, with openai-whisper's decoder on the host.

    Needs the package openai-whisper, which takes a file as a whole: about 2 GB of memory for each
    hour.
    """
    from npu_matmul.whisper.ledger import places, record
    from npu_matmul.whisper.transcribe import load_model
    from npu_matmul.whisper.transcribe import transcribe as transcribe_file

    kinds = (".txt", ".srt", ".vtt", ".tsv", ".json")
    if output is not None and output.suffix not in kinds:
        raise click.UsageError(f"{output}: a name that ends in {', '.join(kinds)} is needed")
    if output is not None:
        _check_folder(output)
    options = {"device": device, "precision": _precision_pairs(precision)}
    model = load_model(weights, attention=attention, **options)
    with record() as book, console.status("transcribing"):
        result = transcribe_file(model, audio, language=language, task=task)
    if output is not None:
        _write_transcript(result, output)
        console.print(f"written: {escape(str(output))}", highlight=False, soft_wrap=True)
    else:
        for segment in result["segments"]:
            times = f"[{segment['start']:8.2f} s to {segment['end']:8.2f} s]"
            console.print(escape(times) + escape(segment["text"]), highlight=False, soft_wrap=True)
    console.print(f"\nencoder computed on: {places(book.products)}", highlight=False)


def _precision_pairs(given: Iterable[str]) -> tuple[tuple[str, str], ...]:
    from npu_matmul.precision import PRECISIONS

    pairs = [text.rpartition("=") for text in given]
    for _, _, precision in pairs:  # now, and not when the weights have been read
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise click.UsageError(f"there is no precision {precision!r}; known are: {known}")
    return tuple((pattern or "*", precision) for pattern, _, precision in pairs)


def _jobs(audio: tuple[str, ...], output: Path | None) -> list[Job]:
    """A job per file; what -o means depends on how many there are."""
    from npu_matmul.whisper.encode import Job

    if output is None:
        return [Job(path) for path in audio]
    if len(audio) == 1 and output.suffix and not output.is_dir():
        if output.suffix != ".npz":
            raise click.UsageError(f"{output}: a name that ends in .npz, or a directory, is needed")
        _check_folder(output)
        return [Job(audio[0], str(output))]
    if output.suffix == ".npz":
        raise click.UsageError(f"{output}: for several AUDIO, -o is a directory")
    targets = [str(output / f"{Path(path).stem}.npz") for path in audio]
    twice = [target for target, count in Counter(targets).items() if count > 1]
    if twice:
        raise click.UsageError(f"two AUDIO would be written to {twice[0]}; rename one")
    output.mkdir(parents=True, exist_ok=True)
    return [Job(path, target) for path, target in zip(audio, targets, strict=True)]


def _check_folder(output: Path) -> None:
    """Before hours of work, not after."""
    if not output.parent.is_dir():
        raise click.UsageError(f"{output.parent}: there is no such directory")


def _default_processes(device: str, jobs: list[Job]) -> int:
    """One where an NPU is shared; else as many as there are files, and cores for them."""
    if device == "xrt":
        return 1
    return min(len(jobs), len(os.sched_getaffinity(0)))


def _encoded(
    settings: Settings, jobs: list[Job], processes: int, dask: str | None
) -> Iterator[FileReport]:
    """A report of each file, with a bar over files, and a line for each as it is done."""
    from npu_matmul.whisper.spread import over_dask, over_processes

    with progress_bars(console) as bars:
        files = bars.add_task("files", total=len(jobs), visible=len(jobs) > 1)
        if dask is not None:
            reports = over_dask(settings, jobs, dask)
        elif processes > 1:
            reports = over_processes(settings, jobs, processes)
        else:
            reports = _in_turn(settings, jobs, bars)
        for report in reports:
            bars.advance(files)
            if len(jobs) > 1:
                state = "[red]failed[/red]" if report.error else f"{report.wall_s:.1f} s"
                line = f"{escape(report.audio)}: {state}"
                bars.console.print(line, highlight=False, soft_wrap=True)
            yield report


def _in_turn(settings: Settings, jobs: list[Job], bars: Progress) -> Iterator[FileReport]:
    """In this process, with a bar over layers, and one over the windows of the file at hand."""
    from npu_matmul.whisper.encode import Progress as FileProgress
    from npu_matmul.whisper.encode import pipeline

    packing = bars.add_task("packing the weights", total=None)
    made = pipeline(settings)
    bars.remove_task(packing)
    layers = bars.add_task("layers", total=made.encoder.dims.n_audio_layer)
    windows: TaskID | None = None
    for job in jobs:
        if windows is not None:
            bars.remove_task(windows)
        windows = bars.add_task(escape(_short(job.audio)), total=None)
        yield made.encode(job, FileProgress(_updates(bars, windows), _updates(bars, layers)))


def _updates(bars: Progress, task: TaskID) -> Callable[[int, int | None], None]:
    return lambda done, of: bars.update(task, completed=done, total=of)


def show(reports: list[FileReport], to: Console, wall_s: float, several: str) -> None:
    """The final tables: each file, where each second went, what the device did. ``wall_s`` is that
    of the whole run; ``several`` says whose seconds are summed where not one process's."""
    files = Table("file", box=box.SIMPLE_HEAD)
    for heading in ("audio s", "windows", "seconds", "real-time factor"):
        files.add_column(heading, justify="right")
    for report in reports:
        cells = ["-"] * 4
        if not report.error:
            cells = [f"{report.audio_s:,.2f}", f"{report.windows:,}", f"{report.wall_s:,.2f}"]
            cells.append(f"{report.real_time_factor:.3f}")
        files.add_row(escape(_short(report.audio)), *cells)
    to.print(files)
    done = [report for report in reports if not report.error]
    if done:
        if len(reports) > 1:
            audio_s = sum(report.audio_s for report in done)
            to.print(
                f"{len(done):,} of {len(reports):,} files: {audio_s:,.2f} s of audio in "
                f"{wall_s:,.2f} s with loading, real-time factor {wall_s / audio_s:.3f}",
                highlight=False,
            )
        to.print(_stage_table(done, several))
        to.print(_device_line(done), highlight=False)
    for report in reports:
        if report.error:
            line = f"[red]failed:[/red] {escape(report.audio)}: {escape(_reason(report))}"
            to.print(line, highlight=False, soft_wrap=True)
        elif report.output:
            to.print(f"written: {escape(report.output)}", highlight=False, soft_wrap=True)
    if done and not any(report.output for report in done):
        to.print("features were not written: give -o to keep them")


def _stage_table(reports: list[FileReport], several: str) -> Table:
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        for stage, spent in report.seconds.items():
            seconds[_kind(stage)] += spent
        seconds["everything else"] += report.wall_s - sum(report.seconds.values())
    total = sum(seconds.values())
    table = Table(f"where the seconds{several and f' of {several}'} went", box=box.SIMPLE_HEAD)
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for stage, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{spent:,.3f}", f"{spent / total:.1%}")
    return table


def _device_line(reports: list[FileReport]) -> str:
    from npu_matmul.whisper.ledger import places

    counts: Counter[str] = Counter()
    products: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
        products.update(report.products)
    return (
        f"computed on: {places(products)}\n"
        f"launches: {counts['launches']:,}; bytes to device: {counts['bytes_to_device']:,}, "
        f"from device: {counts['bytes_from_device']:,}"
    )


def _kind(stage: str) -> str:
    """A stage without the number of its block.

    >>> _kind("blocks.11.attn.out"), _kind("conv1")
    ('attn.out', 'conv1')
    """
    return stage.split(".", 2)[2] if stage.startswith("blocks.") else stage


def _reason(report: FileReport) -> str:
    """Why a file failed, without its name where the message begins with that."""
    kind, _, words = report.error.partition(": ")
    text = words if kind == "AudioError" else report.error
    return text.removeprefix(f"{report.audio}: ")


def _short(path: str, width: int = 20) -> str:
    name = Path(path).name
    return name if len(name) <= width else f"{name[: width - 8]}…{name[-7:]}"


def _say_that_it_is_random(size: str) -> None:
    console.print(
        f"[bold red]RANDOM WEIGHTS[/bold red]: a {escape(size)} encoder of seeded random numbers. "
        "Its features MEAN NOTHING; only the speed is real."
    )


def _write_transcript(result: dict[str, Any], output: Path) -> None:
    from whisper import utils

    writer = getattr(utils, f"Write{output.suffix[1:].upper()}")(str(output.parent))
    with whole_file(output) as part, part.open("w", encoding="utf-8") as file:
        writer.write_result(result, file=file, options={})
