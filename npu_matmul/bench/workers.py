"""Starts a process per library and asks them for turns, one at a time.

Thread pools of several libraries in one process get in each other's way: a pool's idle threads spin
for a while after its last product, and take the cores from the next library. So each library runs
alone in a process, limited to as many CPUs as threads, and while one has its turn the others wait
for a request. OpenBLAS's threads, which spin longest (over 80 ms were seen), are told to sleep at
once; within a turn calls follow one another, and none of them waits for a thread. Before a turn of
several threads all rest for ``REST_S``, until no pool spins; not longer, as a CPU that idled for
0.1 s is slow to start again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from npu_matmul.bench.environment import fastest_cpus
from npu_matmul.host.paths import PATH_VARIABLE
from npu_matmul.host.threads import THREAD_VARIABLES

REST_S = 0.01
SPIN = {"OPENBLAS_THREAD_TIMEOUT": "10"}  # 2**10 cycles


class WorkerFailed(RuntimeError):
    """A library's process ended before it answered; the message has its last words."""


class Process:
    """One library's process. ``path`` forces our CPU device to one kind of instructions."""

    def __init__(self, library: str, threads: int, path: str | None = None) -> None:
        self.library, self.threads, self.path = library, threads, path
        cpus = ",".join(map(str, fastest_cpus(threads)))
        command = [sys.executable, "-m", "npu_matmul.bench.worker", library, path or "", cpus]
        self._words: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env=_variables(library, threads, path),
            start_new_session=True,  # Ctrl-C is for us, not for them
        )

    def ask(self, request: str, **arguments: Any) -> Any:
        """The answer; raises :class:`WorkerFailed` when the process ends instead."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"ask": request, **arguments}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise WorkerFailed(self._last_words())
        return json.loads(answer)

    def turn(self, name: str) -> float:
        """Seconds of one call: CPU time of the process for one thread, else wall time."""
        if self.threads > 1:
            time.sleep(REST_S)
        took = self.ask("turn", name=name)
        return float(took["cpu_s" if self.threads == 1 else "wall_s"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._words.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._words.seek(0)
        lines = self._words.read().strip().splitlines() or ["it said nothing"]
        return f"the process that measures {self.library} ended with {code}: {lines[-1]}"


@contextmanager
def processes(
    libraries: Sequence[str], threads: int, paths: Sequence[str] = ()
) -> Iterator[list[Process]]:
    """A process per library and one more of ours per forced path; all end with the block."""
    with ExitStack() as stack:
        started = []
        kinds = [*((name, None) for name in libraries), *(("npu_matmul", path) for path in paths)]
        for library, path in kinds:
            process = Process(library, threads, path)
            stack.callback(process.close)
            started.append(process)
        yield started


def _variables(library: str, threads: int, path: str | None) -> dict[str, str]:
    """Every library's thread limit. Where NumPy only checks accuracy it gets one thread, so that
    no second pool exists. Beside ours its threads spin as long as they do for everybody."""
    limits = dict.fromkeys(THREAD_VARIABLES, str(threads))
    variables = {**os.environ, **({} if library == "both" else SPIN), **limits}
    variables.pop(PATH_VARIABLE, None)
    if library in ("torch", "ort"):
        variables["OPENBLAS_NUM_THREADS"] = "1"
    if path is not None:
        variables[PATH_VARIABLE] = path
    return variables
