"""``npu-matmul build``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from npu_matmul.kernel import Kernel, KernelNotBuilt, kernels_named
from npu_matmul.target import TARGETS


@click.command(short_help="Build kernels' overlays for a real NPU.")
@click.argument("kernel", required=False)
@click.option("--variant", default=None, help="Only this variant of the kernel.")
@click.option(
    "--target", default=None, type=click.Choice(list(TARGETS)), help="Default: the kernel's own."
)
@click.option("--force", is_flag=True, help="Build again what is built.")
@click.option("--dry-run", is_flag=True, help="Only print the commands.")
def build(
    kernel: str | None, variant: str | None, target: str | None, force: bool, dry_run: bool
) -> None:
    """Build a kernel's overlays for a real NPU; without KERNEL, those of every kernel.

    Needs mlir-aie, llvm-aie (Peano) and XRT's xclbinutil. Nothing is built twice: products are kept
    in the user's cache under what they were made from. Exit code 2 when a build fails.
    """
    from npu_matmul.build import run

    console = Console()
    for each, name in _wanted(kernel, variant, target):
        title = f"{each.name} {each.variant}, {name}"
        if dry_run:
            run.require_rules(each, name)
            click.echo(f"# {title}")
            for line in _commands(each, name):
                click.echo(line)
            continue
        console.print(f"[bold]{title}[/bold]", highlight=False)
        with console.status("checking the design") as status:

            def tell(text: str) -> None:
                console.print(f"  {escape(text)}", highlight=False, soft_wrap=True)
                status.update(escape(text))

            built = run.build(each, name, force, tell)
        console.print(f"  [green]built[/green] {escape(str(built.folder))}", soft_wrap=True)


def _wanted(name: str | None, variant: str | None, target: str | None) -> list[tuple[Kernel, str]]:
    """What was asked for: kernels, each with a target that it is for."""
    kernels = _kernels(name, variant)
    found = [(each, one) for each in kernels for one in each.targets if target in (None, one)]
    if not found:
        targets = ", ".join(sorted({one for each in kernels for one in each.targets}))
        raise click.UsageError(
            f"no kernel here is for {target}"
            if name is None
            else f"{name} is for {targets}, not for {target}"
        )
    return found


def _kernels(name: str | None, variant: str | None) -> list[Kernel]:
    if name is not None:
        return kernels_named(name, variant)
    if variant is not None:
        raise click.UsageError("--variant needs a KERNEL")
    return [kernel for kernel in kernels_named() if kernel.source.is_file()]


def _commands(kernel: Kernel, target: str) -> list[str]:
    """The commands as a shell takes them; variables stand for what is not installed here."""
    from npu_matmul.build.identity import overlay_inputs, overlay_name
    from npu_matmul.build.plan import (
        DESIGN,
        OPTIONS_1_3,
        Tools,
        build_steps,
        reference_problem,
        syntax_of,
    )
    from npu_matmul.build.toolchain import MLIR_AIE_VARIABLE, PEANO_VARIABLE, find_toolchain

    notes = []
    try:
        tools = find_toolchain().tools
    except KernelNotBuilt as error:
        notes = [f"# {line}" for line in str(error).splitlines()]
        mlir_aie, peano = Path(f"${MLIR_AIE_VARIABLE}"), Path(f"${PEANO_VARIABLE}")
        tools = Tools(
            compiler=peano / "bin/clang++",
            peano=peano,
            aiecc=mlir_aie / "bin/aiecc",
            headers=mlir_aie / "include",
            xclbinutil=Path("xclbinutil"),
            options=OPTIONS_1_3,
        )
    m, k, n = reference_problem(kernel)
    emit = f"npu-matmul emit {kernel.name} --variant {kernel.variant} --target {target}"
    steps = build_steps(kernel, target, tools, overlay_name(overlay_inputs(kernel, target)))
    quoted = [" ".join(map(_quoted, step.command)) for step in steps]
    syntax = syntax_of(tools.options)
    return [*notes, f"{emit} -m {m} -k {k} -n {n} --mlir-aie {syntax} -o {DESIGN}", *quoted]


def _quoted(word: str) -> str:
    return word if "$" in word and " " not in word else shlex.quote(word)
