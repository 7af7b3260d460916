"""The command line, ``npu-matmul``; each command stands in a module beside what it is about."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.markup import escape

from npu_matmul import __version__
from npu_matmul.bench.command import bench
from npu_matmul.build.command import build
from npu_matmul.check.command import check
from npu_matmul.demo.command import demo
from npu_matmul.device import DeviceError, UnknownDevice
from npu_matmul.doctor.command import doctor
from npu_matmul.emit import emit
from npu_matmul.explore.command import explore
from npu_matmul.kernel import KernelNotBuilt, ManifestError, UnknownKernel
from npu_matmul.listing import devices, kernels
from npu_matmul.plan.command import plan
from npu_matmul.timeline.option import with_trace
from npu_matmul.verify.command import verify
from npu_matmul.whisper.commands import encode, transcribe

USER_ERRORS = (
    *(DeviceError, UnknownDevice, UnknownKernel, KernelNotBuilt, ManifestError),
    *(ValueError, OSError, ModuleNotFoundError, MemoryError),
)
COMMANDS = (
    *(demo, encode, transcribe, kernels, devices),
    *(emit, check, verify, plan, explore),
    *(bench, build, doctor),
)


def main() -> None:
    """Run the command line; what a user can cure ends with one line and exit code 2."""
    try:
        app()
    except USER_ERRORS as error:
        message = f"[red]error:[/red] {escape(str(error) or 'there is not enough memory')}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="npu-matmul")
def app() -> None:
    """np.matmul on AMD Ryzen AI NPUs."""


for command in COMMANDS:
    app.add_command(with_trace(command))
