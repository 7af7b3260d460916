"""One library's process: it prepares products and times a turn of one whenever it is asked.

Requests and answers are lines of JSON on standard input and output; whatever a library prints goes
to standard error. The process ends when its input does. ``workers`` is the other side.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npu_matmul.bench.accuracy import Accuracy

MOST_SETS = 256  # of operands, where products are so small that they never fill a cache
STAGE_CALLS = 21


class Worker:
    """The answers to each request, by the request's name. ``alternatives`` can be timed: a call and
    how many make a turn; ``checks`` say how accurate what they compute is."""

    def __init__(self, library: str, path: str | None, threads: int) -> None:
        self.library, self.path, self.threads = library, path, threads
        self.alternatives: dict[str, tuple[Callable[[], Any], int]] = {}
        self.checks: dict[str, Callable[[], Accuracy]] = {}
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        if library == "torch":
            import torch

            torch.set_num_threads(threads)

    def hello(self) -> dict[str, Any]:
        """What this process is limited to and which BLAS it has."""
        from npu_matmul.bench.environment import blas, settings, usable_cpus

        told = {"library": self.library, "cpus": usable_cpus(), "settings": settings()}
        if self.library == "torch":
            import torch

            told |= {
                "threads": torch.get_num_threads(),
                "instructions": torch.backends.cpu.get_cpu_capability(),
            }
        return {**told, "blas": blas()}

    def products(
        self, shape: list[int], pool_bytes: int, turn_s: float, only: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """Prepare this library's forms of a product; what was prepared before is dropped.

        Each form gets as many sets of operands as fill ``pool_bytes``, at least one, which its
        calls take in turn. Answers a row per form: its kind, accuracy and arithmetic, or "error".
        """
        from npu_matmul.bench.contenders import Problem, forms

        M, K, N = shape
        self.alternatives, self.checks = {}, {}
        problem = Problem.random((M, K, N))
        wanted = [f for f in forms(self.library, self.path) if only is None or f.name in only]
        return [self._product(form, problem, (M, K, N), pool_bytes, turn_s) for form in wanted]

    def _product(
        self, form: Any, problem: Any, shape: tuple[int, int, int], pool_bytes: int, turn_s: float
    ) -> dict[str, Any]:
        from npu_matmul.bench.timing import calls_per_turn

        M, K, N = shape
        set_bytes = form.operand_bytes(shape)
        row = {
            "product": form.name,
            "library": self.library,
            "kind": form.kind,
            "path": form.path,
            "weights": form.weights,
            "operations": 2 * M * K * N,
            "operand_bytes": set_bytes,
        }
        count = min(max(1, -(-pool_bytes // set_bytes)), MOST_SETS)
        try:
            sets = [form.prepare(problem) for _ in range(count)]
            check = partial(_computed_anew, sets, partial(problem.accuracy, form.kind))
            row["accuracy"] = check()
            row["arithmetic"] = self._arithmetic()
        except (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError) as error:
            return {**row, "error": _one_line(error)}
        row["sets"] = count
        work = sets[0].work if count == 1 else _rotating([each.work for each in sets])
        self.alternatives[form.name] = work, calls_per_turn(work, turn_s)
        self.checks[form.name] = check
        return row

    def check(self, name: str) -> Accuracy:
        """How accurate what was timed is now."""
        return self.checks[name]()

    def _arithmetic(self) -> str | None:
        if self.library != "npu_matmul":
            return None
        from npu_matmul import last_call

        return last_call().arithmetic

    def encoder_reference(self, size: str, path: str) -> None:
        """Write the features of a size that all encoders approximate."""
        import numpy as np

        from npu_matmul.bench import encoders

        np.save(path, encoders.reference(size))

    def encoders(self, size: str, want: str, turn_s: float) -> list[dict[str, Any]]:
        """Prepare this library's encoders of a size; what was prepared before is dropped."""
        import numpy as np

        from npu_matmul.bench import encoders

        self.alternatives, self.checks = {}, {}
        wanted = np.load(want)
        made = {name: encoders.prepared(name, size) for name in encoders.ENCODERS[self.library]}
        bounds = {name: encoders.encoder_bound(name, size) for name in made}
        return [
            {"encoder": name, "accuracy": self._ready(name, ready, wanted, bounds[name], turn_s)}
            for name, ready in made.items()
        ]

    def functions(self, turn_s: float) -> list[dict[str, Any]]:
        """Prepare this library's functions between products."""
        from npu_matmul.bench import encoders

        self.alternatives, self.checks = {}, {}
        return [
            {"function": name, "accuracy": self._ready(name, ready, wanted, bound, turn_s)}
            for name, (ready, wanted, bound) in encoders.functions(self.library).items()
        ]

    def _ready(self, name: str, ready: Any, want: Any, bound: float, turn_s: float) -> Accuracy:
        """Of what is to be timed from now on: how accurate its first call is."""
        from npu_matmul.bench.encoders import accuracy
        from npu_matmul.bench.timing import calls_per_turn

        ready.work()
        self.checks[name] = lambda: accuracy(ready.result(), want, bound)
        found = self.checks[name]()
        self.alternatives[name] = ready.work, calls_per_turn(ready.work, turn_s)
        return found

    def peaks(self, turn_s: float) -> list[dict[str, Any]]:
        """Prepare the probes of ``peak``."""
        from npu_matmul.bench import peak
        from npu_matmul.bench.timing import calls_per_turn

        rows = []
        for probe in peak.usable_probes():
            name = f"peak {probe.kind}"
            work = peak.probe_work(probe, self.pool, self.threads)
            self.alternatives[name] = work, calls_per_turn(work, turn_s)
            told = {"kind": probe.kind, "instruction": probe.instruction, "bits": probe.bits}
            operations = peak.operations(probe, self.threads)
            rows.append({"peak": name, **told, "operations": operations})
        return rows

    def copies(self, turn_s: float) -> list[dict[str, Any]]:
        """Prepare the copies of ``peak``."""
        from npu_matmul.bench import peak
        from npu_matmul.bench.timing import calls_per_turn

        rows = []
        for name, (moved_bytes, work) in peak.copy_works(self.pool, self.threads).items():
            self.alternatives[f"copy {name}"] = work, calls_per_turn(work, turn_s)
            rows.append({"copy": f"copy {name}", "where": name, "bytes": moved_bytes})
        return rows

    def turn(self, name: str) -> dict[str, float]:
        from npu_matmul.bench.timing import elapsed

        took = elapsed(*self.alternatives[name])
        return {"cpu_s": took.cpu_s, "wall_s": took.wall_s}

    def stages(self, name: str) -> dict[str, Any]:
        """Median wall seconds of a prepared product's calls, in all and by stage."""
        from npu_matmul import last_call

        work, _ = self.alternatives[name]
        walls, stages = [], []
        for _ in range(STAGE_CALLS):
            start = time.perf_counter()
            work()
            walls.append(time.perf_counter() - start)
            stages.append(last_call().seconds)
        by_stage = {key: statistics.median(call[key] for call in stages) for key in stages[0]}
        return {"wall_s": statistics.median(walls), "seconds": by_stage}


def _computed_anew(sets: list[Any], accuracy: Callable[[Any], Accuracy]) -> Accuracy:
    """The worst of all sets, whose memory was cleared before: what is there was just computed."""
    from npu_matmul.bench.accuracy import worst

    for each in sets:
        each.result()[...] = 0
    for each in sets:
        each.work()
    return worst(accuracy(each.result()) for each in sets)


def _rotating(works: list[Callable[[], Any]]) -> Callable[[], Any]:
    following = cycle(works).__next__
    return lambda: following()()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def main(library: str, path: str, cpus: str) -> None:
    """Serve requests until the input ends, on these CPUs alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    allowed = [int(cpu) for cpu in cpus.split(",")]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed)
    worker = Worker(library, path or None, len(allowed))
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("ask"))(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
