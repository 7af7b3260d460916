"""How long a fresh process takes to its first result, from nothing: Python, imports, the product.

What numba compiles is on the disk from the first start, which is not timed; the first process of an
installation finds nothing there, and is timed with an empty folder in its place.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from tempfile import TemporaryDirectory

from npu_matmul.bench.accuracy import Accuracy, worst
from npu_matmul.bench.contenders import BASELINE, OWN_INT8
from npu_matmul.bench.session import Results, Show, timing_of
from npu_matmul.bench.timing import take_turns
from npu_matmul.bench.workers import WorkerFailed
from npu_matmul.host.threads import thread_count
from npu_matmul.shapes import Shape

SHAPE: Shape = (1500, 512, 512)  # a projection of Whisper's base encoder
PROGRAMS = {
    OWN_INT8: (
        "from npu_matmul import npu_matmul",
        "c = npu_matmul(a, b, dtype=np.int32, device='cpu')",
    ),
    BASELINE: ("", "c = np.matmul(a.astype(np.float32), b.astype(np.float32))"),
}
COMPILING = f"{OWN_INT8}, nothing compiled"
COMPILING_MOST_S = 20.0  # one start compiles for seconds
TEMPLATE = """
import numpy as np
{imports}
M, K, N = {shape}
a = (np.arange(M * K) * 37 % 251 - 125).astype(np.int8).reshape(M, K)
b = (np.arange(K * N) * 41 % 241 - 120).astype(np.int8).reshape(K, N)
{product}
print("first", flush=True)
print(np.count_nonzero(c != a.astype(float) @ b.astype(float)), c.size)
"""  # float32 holds these sums exactly, too: all are below 2**24


def measure_starts(results: Results, show: Show = lambda _: None) -> None:
    """Fill ``results.starts``: a row per program, then one of our product with nothing compiled,
    each with the worst accuracy of all its starts."""
    found: dict[str, list[Accuracy]] = {name: [] for name in (*PROGRAMS, COMPILING)}

    def turn(name: str) -> float:
        seconds, accuracy = compiling_s() if name == COMPILING else first_result_s(name)
        found[name].append(accuracy)
        return seconds

    for name in PROGRAMS:
        turn(name)
    turns = {name: partial(turn, name) for name in PROGRAMS}
    samples = take_turns(turns, lambda number: show(f"fresh processes: round {number}"))
    samples |= take_turns(
        {COMPILING: partial(turn, COMPILING)},
        lambda number: show(f"processes that compile: round {number}"),
        most_s=COMPILING_MOST_S,
    )
    threads = thread_count()
    common = {"shape": list(SHAPE), "threads": threads}
    results.starts += [
        {
            **{"product": f"first {name}", **common, **timing_of(samples[name], threads)},
            **{"clock": "wall", "accuracy": worst(found[name])},
        }
        for name in found
    ]


def compiling_s() -> tuple[float, Accuracy]:
    """:func:`first_result_s` of our product where numba's cache is an empty folder."""
    with TemporaryDirectory() as folder:
        return first_result_s(OWN_INT8, NUMBA_CACHE_DIR=folder)


def first_result_s(name: str, shape: Shape = SHAPE, **environment: str) -> tuple[float, Accuracy]:
    """Wall seconds from starting the process to the word that tells of the result, and how right it
    is, which the process finds out afterwards. ``environment`` adds to this process's variables.
    Raises :class:`WorkerFailed` when it fails."""
    imports, product = PROGRAMS[name]
    program = TEMPLATE.format(imports=imports, product=product, shape=shape)
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        assert process.stdout and process.stderr
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        rest, words = process.stdout.read(), process.stderr.read()
    if line.strip() != "first" or process.returncode:
        last = (words.strip().splitlines() or ["it said nothing"])[-1]
        raise WorkerFailed(f"a process that computes {name} ended without a result: {last}")
    wrong, values = map(int, rest.split())
    return seconds, {"wrong_values": wrong, "values": values}
