"""``--trace FILE``, for any command."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import click

from npu_matmul.timeline import listening
from npu_matmul.timeline.trace import WRITERS, trace

HELP = f"Record where time goes into FILE, which ends in {', '.join(WRITERS)}."


def with_trace(command: click.Command) -> click.Command:
    """The command with one more option; without it, it does what it did."""
    run = command.callback
    assert run is not None

    @wraps(run)
    def traced(*args: Any, trace_file: Path | None, **kwargs: Any) -> Any:
        if trace_file is None:
            return run(*args, **kwargs)
        tracing = trace(trace_file)
        try:
            with tracing, listening.span(f"npu-matmul {command.name}"):
                return run(*args, **kwargs)
        finally:
            if tracing.written:
                click.echo(f"where time went: {trace_file}", err=True)

    option = click.Option(
        ["--trace", "trace_file"], metavar="FILE", type=click.Path(path_type=Path), help=HELP
    )
    command.params.append(option)
    command.callback = traced
    return command
