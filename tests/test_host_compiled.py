"""Compiled functions: importing them compiles nothing, nor does using them once more."""

from __future__ import annotations

from fresh import run_fresh

import npu_matmul.host

EVERY_MODULE = """
import gc, importlib, pkgutil
import npu_matmul
from numba.core.dispatcher import Dispatcher

for module in pkgutil.walk_packages(npu_matmul.__path__, "npu_matmul."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # of an extra
            assert not error.name.startswith("npu_matmul"), error
found = [x for x in gc.get_objects() if isinstance(x, Dispatcher)]
ours = [x for x in found if x.py_func.__module__.startswith("npu_matmul.")]
assert not any(x.overloads for x in ours), [x for x in ours if x.overloads]
from npu_matmul.host.compiled import Task
tasks = [x for x in gc.get_objects() if isinstance(x, Task)]
assert len(tasks) > 15 and not any(set(vars(x)) - {"function"} for x in tasks)
print(*{x.py_func.__module__ for x in ours})
"""


def test_importing_compiles_nothing() -> None:
    modules = run_fresh(EVERY_MODULE).stdout.split()
    names = "gemm", "panels", "blocked", "attention", "convert"
    assert {f"{npu_matmul.host.__name__}.{name}" for name in names} <= set(modules)


EVERY_PRODUCT = """
import gc
import numpy as np
from numba.core.dispatcher import Dispatcher
from npu_matmul import npu_matmul, pack_b
from npu_matmul.host.compiled import Task
from npu_matmul.whisper import AudioEncoder
from small_encoder import MEL, TENSORS

x = np.random.default_rng(0).standard_normal((130, 130), np.float32)
kinds = [(x.astype(np.int8), None), *((x, p) for p in ("int8", "bf16", "bf16x3"))]
for a, precision in [*kinds, (x.astype(np.float64), "int8"), (x.astype(np.float16), "bf16")]:
    for device in ("cpu", "emulated"):
        for b in (a, a.T):
            npu_matmul(a, pack_b(b, device=device, precision=precision))
            npu_matmul(a[:16], b, device=device, precision=precision)
npu_matmul(kinds[0][0][:40, :40], kinds[0][0][:40, :40], device="emulated", strategy="sequential")
for precision in ("int8", "bf16", "bf16x3"):
    AudioEncoder(TENSORS, device="cpu", precision=precision)(MEL)
functions = [f for f in gc.get_objects() if isinstance(f, Dispatcher)]
functions = [f for f in functions if f.py_func.__module__.startswith("npu_matmul.") and f.overloads]
tasks = [t for t in gc.get_objects() if isinstance(t, Task) and "_native" in vars(t)]
print(len(functions), len(tasks))
for f in functions:
    if sum(f.stats.cache_hits.values()) < len(f.overloads):
        print("compiled:", f.py_func.__module__, f.py_func.__qualname__)
for t in tasks:
    if not t._native.cache_hits:
        print("compiled:", t.function.__module__, t.function.__qualname__)
"""


def test_a_later_process_compiles_nothing() -> None:
    run_fresh(EVERY_PRODUCT)
    counts, *compiled = run_fresh(EVERY_PRODUCT).stdout.splitlines()
    functions, tasks = map(int, counts.split())
    assert functions > 10 and tasks > 20
    assert compiled == []
