"""Compiled functions: importing them compiles nothing."""

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
