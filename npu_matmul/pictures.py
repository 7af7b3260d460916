"""What every picture has in common, and what must be there before one is asked for. Colours are
those of Okabe and Ito, which all eyes tell apart."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from npu_matmul.extras import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDTH_IN, DPI = 8.0, 200  # 1,600 pixels, which a README shows at half of that
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#666666", "#F0E442"),
    *("#882255", "#999933", "#332288"),  # three more, of Tol's
)
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "npu-matmul",
}


def check_installed() -> None:
    """Raises :class:`MissingExtra` when there is nothing to draw with."""
    if find_spec("matplotlib") is None:
        raise MissingExtra("--plot needs matplotlib: pip install 'npu-matmul[plot]'")


def check_outputs(plot: Path | None, json: Path | None) -> None:
    """Before anything is measured: can the files be written? Raises ValueError if not."""
    if plot is not None:
        check_installed()
        if plot.exists() and not plot.is_dir():
            raise ValueError(f"--plot {plot}: that is a file; give a folder for the pictures")
    if json is not None and (json.is_dir() or not json.absolute().parent.is_dir()):
        raise ValueError(f"--json {json}: give a file in a folder that exists")


def plain_numbers(axes: Axes) -> None:
    """Ticks of log axes at 1, 2, 5, 10, written out."""
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis, (1, 2, 5))


def plain_ticks(axis: Axis, digits: tuple[int, ...]) -> None:
    """Ticks of a log axis at these digits, written out."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
