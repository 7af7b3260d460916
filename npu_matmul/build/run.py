"""Running a build: checked first, in a folder of its own, published only when it is whole."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import Timeout

from npu_matmul.build import cache
from npu_matmul.build.identity import overlay_inputs, overlay_name
from npu_matmul.build.plan import (
    DESIGN,
    INSTRUCTIONS,
    LOWERED,
    WORK,
    Step,
    build_steps,
    reference_design,
    syntax_of,
)
from npu_matmul.build.toolchain import Toolchain, find_toolchain, search_folders
from npu_matmul.build.verified import verified
from npu_matmul.kernel import Kernel, KernelNotBuilt
from npu_matmul.kernel_rules import check_kernel

SHOWN_LINES = 12
KEPT_LOWERED = "lowered.mlir"

Tell = Callable[[str], None]


class BuildFailed(KernelNotBuilt):
    """A build did not produce an overlay; the message has the end of its log."""


def build(
    kernel: Kernel, target: str, force: bool = False, tell: Tell = lambda _: None
) -> cache.Built:
    """Build a kernel's overlay, or find that it is built; ``tell`` is told of each step.

    Raises :class:`BuildFailed`, ``BuildRefused`` when the products are wrong, or
    ``ToolchainMissing``.
    """
    require_rules(kernel, target)
    toolchain = find_toolchain()
    place = cache.place_for(kernel, target, toolchain.versions)
    lock = cache.building(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell("waiting for another build of the same overlay")
        lock.acquire()
    try:
        built = None if force else cache.built_at(place, kernel, target)
        if built is not None:
            tell("nothing has changed since it was built")
            return built
        with _signals_raise():
            return _build(kernel, target, toolchain, place, tell)
    finally:
        lock.release()


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """What asks a process to end, such as a closed terminal, raises SystemExit, so that the
    programs it started end too. Signals that someone else handles stay theirs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def require_rules(kernel: Kernel, target: str) -> None:
    """Raise :class:`BuildFailed` when the design breaks a rule."""
    violations = check_kernel(kernel, target).violations
    if violations:
        raise BuildFailed(
            f"kernel {kernel.name!r}, variant {kernel.variant!r}, breaks {len(violations)} design "
            f"rule{'s' if len(violations) > 1 else ''} on {target}, the first: {violations[0]}; "
            f"npu-matmul check {kernel.name} shows all"
        )


def _build(
    kernel: Kernel, target: str, toolchain: Toolchain, place: Path, tell: Tell
) -> cache.Built:
    inputs = overlay_inputs(kernel, target)
    name = overlay_name(inputs)
    steps = build_steps(kernel, target, toolchain.tools, name)
    log = cache.log_file(place)
    work = cache.unfinished(place)
    try:
        design = reference_design(kernel, target, syntax_of(toolchain.tools.options))
        (work / DESIGN).write_text(design, encoding="utf-8")
        tell(f"log: {log}")
        for step in steps:
            tell(step.title)
            _run(step, work, toolchain, log)
        tell("running what aiecc lowered on the emulated NPU")
        shown = _verified(kernel, target, work)
        tell(shown)
        _tidy(work)
        record = cache.Record(
            kernel=kernel.name,
            variant=kernel.variant,
            target=target,
            name=name,
            inputs=inputs,
            tools=toolchain.versions,
            commands=[list(step.command) for step in steps],
            products={path.name: str(cache.sha_of(path)) for path in work.iterdir()},
            verified=shown,
            built=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
        )
        return cache.publish(work, place, record)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _verified(kernel: Kernel, target: str, work: Path) -> str:
    """What was shown of the products in the working folder; raises when they are wrong."""
    lowered = _lowered(work)
    if lowered is None:
        raise BuildFailed(
            f"aiecc kept no {LOWERED}, so what it made of kernel {kernel.name!r} cannot be run and "
            "is not published; this mlir-aie is not one that this version knows"
        )
    insts = (work / INSTRUCTIONS).read_bytes()
    return verified(kernel, target, lowered.read_text(encoding="utf-8"), insts)


def _lowered(work: Path) -> Path | None:
    """Where aiecc put the module that it lowered."""
    places = (work / WORK / LOWERED, work / LOWERED)
    return next((place for place in places if _has_content(place)), None)


def _tidy(work: Path) -> None:
    """Keep the lowered module, and nothing else of what aiecc left besides the products."""
    lowered = _lowered(work)
    assert lowered is not None
    shutil.move(lowered, work / KEPT_LOWERED)
    for path in list(work.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)


def _run(step: Step, work: Path, toolchain: Toolchain, log: Path) -> None:
    """One command, whose output goes to the log."""
    path = os.pathsep.join([*search_folders(toolchain.tools), os.environ.get("PATH", "")])
    with log.open("ab") as output:
        output.write(f"$ {' '.join(step.command)}\n".encode())
        output.flush()
        code = _wait(
            subprocess.Popen(
                step.command,
                cwd=work,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
    missing = [name for name in step.produces if not _has_content(work / name)]
    if code == 0 and not missing:
        return
    what = f"ended with exit code {code}" if code else f"did not write {', '.join(missing)}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]
    raise BuildFailed(
        f"{step.title}: {Path(step.command[0]).name} {what}. The end of {log}:\n"
        + "\n".join(f"  {line}" for line in lines)
        + (f"\n{step.hint}" if step.hint else "")
    )


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code; an interrupt ends the command and all that it started."""
    try:
        return process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
