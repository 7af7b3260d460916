"""One launch of a module as a timeline: what each part of the array does, at modelled times.

Of a lowered module also each lock operation, with the wait before it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from xdsl.dialects import func

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.pace import Pace, kernel_call_cycles, pace_of
from npu_matmul.emulator.timed import TimedMachine
from npu_matmul.instructions import StreamError
from npu_matmul.lowered.timed import TimedLoweredMachine
from npu_matmul.mlir import aie
from npu_matmul.mlir.elaborate import elements_of
from npu_matmul.mlir.reader import DesignError, read_design
from npu_matmul.timeline.trace import trace
from npu_matmul.verify.subject import Subject
from npu_matmul.verify.traffic import trial_memories

TOLD = EmulationError, StreamError, DesignError  # by the verdict


def record_timeline(text: str, name: str, insts: bytes | None, path: Path) -> str:
    """Run a module's own launch, or the first that is made up for it, into a file; which it was.

    Where it goes wrong, the file has what came before; there is none of an array that does not
    boot. Raises as :func:`npu_matmul.trace` does.
    """
    device = read_design(text, name)
    subject = Subject(device, name, insts)
    trials = [*subject.own, *subject.made_up]
    if not subject.runnable or not trials:
        return ""
    memories = trial_memories(trials[0], np.random.default_rng(0))
    pace = _pace(subject, device)
    try:
        machine = _machine(subject, pace)
    except TOLD:
        return ""
    with trace(path) as recording:
        with suppress(*TOLD):
            machine.launch(trials[0].stream, memories)
        recording.place(machine.shown(name))
    return trials[0].name


def _machine(subject: Subject, pace: Pace) -> TimedMachine | TimedLoweredMachine:
    if subject.module is not None:
        return TimedLoweredMachine(subject.module, subject.symbols, pace)
    models = {name: symbol.model for name, symbol in subject.symbols.items()}
    return TimedMachine(subject.overlay, models, pace)


def _pace(subject: Subject, device: aie.DeviceOp) -> Pace:
    """Multiplying takes what it takes; other functions, which is assumed, a vector a cycle."""
    target, cycles = subject.overlay.target, {}
    for op in device.body.block.ops:
        if isinstance(op, func.FuncOp) and op.sym_name.data in subject.symbols:
            sizes = (elements_of(kind, op) for kind in op.function_type.inputs)
            nbytes = sum(elements * dtype.itemsize for elements, dtype in sizes)
            cycles[op.sym_name.data] = nbytes / target.vector_bytes
    if subject.product is not None:
        call = kernel_call_cycles(subject.product.kernel, target)
        cycles |= dict.fromkeys(subject.product.symbols, call)
    return pace_of(subject.overlay, cycles)
