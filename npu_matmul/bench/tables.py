"""Measurements as tables of 80 columns: products with their peaks, small products, targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from npu_matmul.bench.contenders import AS_GIVEN, BASELINE, OWN_INT8, PACKED, PACKING
from npu_matmul.bench.encoders import PRECISIONS
from npu_matmul.bench.session import threads_text
from npu_matmul.bench.targets import formatter
from npu_matmul.numbers import three_digits
from npu_matmul.shapes import shape_text

Row = dict[str, Any]
KINDS = ("int8", "dynamic int8", "bf16", "f32")
FUNCTIONS_CAPTION = (
    "Of both: gelu and softmax work in place after a copy of their input, which is timed, too; "
    "layer_norm and attention make a new result. torch's gelu is without the bias of ours."
)
BESIDE_CAPTION = (
    "alone: the sum of both in processes of their own. a core less: what ours on one core would "
    "make of it, as a thread of NumPy's spins for a while after its product."
)
UNSTEADY = "~ its median was not steady; the machine was busy, or slow to settle"


def products_table(rows: Sequence[Row], peaks: Sequence[Row]) -> Table:
    """Products of one shape and number of threads, grouped by kind, and what the CPU can do."""
    shape, threads = rows[0]["shape"], rows[0]["threads"]
    table = _table(f"{shape_text(shape)}, {threads_text(threads)}")
    table.add_column("product")
    for heading in ("ms", "G op/s", "x np\nf32", "of\npeak"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("error", justify="right", max_width=9)
    for kind in KINDS:
        group = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r["seconds"])
        for row in group:
            table.add_row(
                _name(row),
                _mark(row, three_digits(row["seconds"] * 1e3)),
                f"{row['gops']:.1f}",
                f"{row['times_np_f32']:.2f}",
                "" if row["of_peak"] is None else f"{row['of_peak']:.0%}",
                accuracy_text(row["accuracy"]),
                end_section=row is group[-1],
            )
    baseline = next(row for row in rows if row["product"] == BASELINE)
    for row in peaks:
        ratio = f"{row['gops'] / baseline['gops']:.2f}"
        name = f"{row['peak']}, {row['instruction']}"
        table.add_row(name, "", _mark(row, f"{row['gops']:.1f}"), ratio, "100%", "", style="dim")
    return table


def weights_note(rows: Sequence[Row]) -> str:
    """What becomes of B: by library, and by product where it is packed in each call."""
    found: dict[str, dict[str, None]] = {PACKED: {}, PACKING: {}, AS_GIVEN: {}}
    for row in rows:
        product, weights = row["product"], row["weights"]
        found[weights][f'"{product}"' if weights == PACKING else row["library"]] = None
    said = [f"{what}: {', '.join(names)}" for what, names in found.items() if names]
    return f"B is {'; '.join(said)}"


def small_table(rows: Sequence[Row]) -> Table:
    """Microseconds of one call of the public function, beside np.matmul's."""
    threads = threads_text(rows[0]["threads"])
    table = _table(f"us per call of small products, {threads}, out=, in cache")
    for heading in ("cube", "npu_matmul int8", "np.matmul f32", "x np f32", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row["product"] == OWN_INT8:
            other = next(r for r in rows if r["size"] == row["size"] and r["product"] == BASELINE)
            times = (_mark(each, f"{each['seconds'] * 1e6:.2f}") for each in (row, other))
            ratio = f"{row['times_np_f32']:.2f}"
            table.add_row(str(row["size"]), *times, ratio, accuracy_text(row["accuracy"]))
    return table


def beside_table(rows: Sequence[Row]) -> Table:
    """NumPy's product and ours in one process, one after the other, beside each alone."""
    table = _table("np.matmul f32, then npu_matmul int8, over and over in one process")
    table.caption, table.caption_justify = BESIDE_CAPTION, "left"
    table.add_column("M, K, N")
    for heading in ("threads", "ms", "alone, ms", "x alone", "a core\nless", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        less = row["times_with_a_core_less"]
        table.add_row(
            shape_text(row["shape"]),
            str(row["threads"]),
            _mark(row, three_digits(row["seconds"] * 1e3)),
            three_digits(row["alone_s"] * 1e3),
            f"{row['times_alone']:.2f}",
            "" if less is None else f"{less:.2f}",
            accuracy_text(row["accuracy"]),
        )
    return table


def start_table(rows: Sequence[Row]) -> Table:
    """Seconds of fresh processes."""
    table = _table(f"fresh processes, {shape_text(rows[0]['shape'])}")
    table.add_column("product")
    for heading in ("s until its first result", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = _mark(row, three_digits(row["seconds"]))
        name = row["product"].removeprefix("first ")
        table.add_row(name, seconds, accuracy_text(row["accuracy"]))
    return table


def encoder_table(rows: Sequence[Row]) -> Table:
    """Encoders of one size and number of threads: ours by precision, and torch's in float32."""
    table = _table(f"{rows[0]['size']} encoder, 30 s of audio, {threads_text(rows[0]['threads'])}")
    table.add_column("encoder")
    for heading in ("ms", "x torch f32", "error", "cosine"):
        table.add_column(heading, justify="right")
    for row in rows:
        ours = row["encoder"] in PRECISIONS
        table.add_row(
            f"npu_matmul {row['encoder']}" if ours else f"{row['encoder']} f32",
            _mark(row, three_digits(row["seconds"] * 1e3)),
            f"{row['times_torch']:.2f}",
            accuracy_text(row["accuracy"]),
            f"{row['accuracy']['cosine']:.6f}",
        )
    return table


def function_table(rows: Sequence[Row]) -> Table:
    """What is not a product with weights, ours beside torch's in float32."""
    table = _table(f"between the products, {threads_text(rows[0]['threads'])}")
    table.caption, table.caption_justify = FUNCTIONS_CAPTION, "left"
    table.add_column("function")
    for heading in ("us", "error", "torch, us", "error", "x torch"):
        table.add_column(heading, justify="right")
    theirs = {row["function"]: row for row in rows if row["library"] == "torch"}
    for row in rows:
        if row["library"] == "npu_matmul":
            cells = []
            for each in (row, theirs[row["function"]]):
                cells.append(_mark(each, three_digits(each["seconds"] * 1e6)))
                cells.append(accuracy_text(each["accuracy"]))
            table.add_row(row["function"], *cells, f"{row['times_torch']:.2f}")
    return table


def strategy_table(rows: Sequence[Row]) -> Table:
    """Counts of the emulated NPU, and the host's seconds of emulating it."""
    threads = threads_text(rows[0]["threads"])
    table = _table(f"strategies, emulated NPU; times are the emulator's, {threads}")
    table.add_column("M, K, N on kernel")
    for heading in ("launches", "syncs", "MB in", "MB\nout", "ms", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row["strategy"] == rows[0]["strategy"]:
            kernel = row["kernel"].removeprefix("matmul_")
            table.add_row(f"{shape_text(row['shape'])}, {kernel}")
        table.add_row(
            f"  {row['strategy']}",
            f"{row['launches']:,}",
            f"{row['syncs_to_device'] + row['syncs_from_device']:,}",
            f"{row['bytes_to_device'] / 1e6:.2f}",
            f"{row['bytes_from_device'] / 1e6:.2f}",
            _mark(row, three_digits(row["host_seconds"] * 1e3)),
            "exact" if row["equal"] else "wrong",
        )
    return table


def target_table(rows: Sequence[Row], operands: str) -> Table:
    """Each target beside the worst shape and what the probed peak allows."""
    table = _table(f"targets; products at the worst whisper-base shape, operands: {operands}")
    table.add_column("target")
    for heading in ("asked", "measured", "allowed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        text = formatter(row["unit"])
        cells = ("" if row[k] is None else text(row[k]) for k in ("asked", "worst", "allowed"))
        table.add_row(row["target"], *cells, verdict(row))
    return table


def verdict(row: Row) -> str:
    """In words; a star where no code could reach it on this CPU, against this baseline."""
    if row["reached"] is None:
        return "not measured"
    if row["reached"]:
        return "reached"
    if row["note"]:
        return "wrong result"
    beyond = row["allowed"] is not None and row["allowed"] < row["asked"]
    return "not reached" + ("*" if beyond else "")


def accuracy_text(accuracy: Row) -> str:
    """
    >>> accuracy_text({"wrong_values": 0, "values": 4}), accuracy_text({"relative_error": 0.00231})
    ('exact', '2.3e-03')
    """
    if "relative_error" in accuracy:
        return f"{accuracy['relative_error']:.1e}"
    return f"{accuracy['wrong_values']:,} wrong" if accuracy["wrong_values"] else "exact"


def disturbed(peaks: Sequence[Row]) -> str | None:
    """A warning when the probes of several threads did not get their cores; else None."""
    single = {row["kind"]: row["gops"] for row in peaks if row["threads"] == 1}
    several = [row for row in peaks if row["threads"] > 1 and row["kind"] in single]
    shares = [(row["gops"] / single[row["kind"]], row["threads"]) for row in several]
    cores, threads = min(shares, default=(1.0, 1), key=lambda share: share[0] / share[1])
    if cores >= 0.95 * threads:
        return None
    return (
        f"Probes of {threads} threads ran as fast as {cores:.1f} cores at worst: something else "
        "used the machine, or its clock fell. Rows of several threads understate what they can do."
    )


def _name(row: Row) -> str:
    return f"{row['product']} ({row['blas_kernel']})" if row["blas_kernel"] else row["product"]


def _mark(row: Row, text: str) -> str:
    return text if row["steady"] else f"~{text}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
