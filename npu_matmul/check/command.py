"""``npu-matmul check``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from npu_matmul.kernel import Kernel, kernels_named
from npu_matmul.target import TARGETS

if TYPE_CHECKING:
    from npu_matmul.design_rules import Checked


@click.command()
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
    from npu_matmul.check import report

    if what is not None and what.endswith(".mlir"):
        from npu_matmul.design_rules import check_file

        if variant is not None or target is not None:
            raise click.UsageError("a file has no variants and names its target itself")
        found = [check_file(Path(what), scheme)]
    else:
        if what is None and variant is not None:
            raise click.UsageError("--variant needs a KERNEL")
        found = [
            _checked(kernel, name, scheme)
            for kernel in kernels_named(what, variant)
            for name in ([target] if target else kernel.targets)
        ]
    console = Console()
    for checked in found:
        report.show(checked, console)
    if any(checked.violations for checked in found):
        sys.exit(1)


def _checked(kernel: Kernel, target: str, scheme: str) -> Checked:
    from npu_matmul.kernel_rules import check_kernel

    checked = check_kernel(kernel, target, scheme)
    if target in kernel.targets:
        return checked
    note = f"the manifest is not for {target}: emit and build refuse it until targets has it"
    return replace(checked, notes=(*checked.notes, note))
