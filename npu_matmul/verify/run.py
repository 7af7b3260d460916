"""Runs a module on the emulated NPU and says whether it is right.

A module is first judged as it stands (addresses, lock counts, wiring), then run under several
schedules: its own runtime sequence, and launches made up for its product with K changing from each
to the next, without a reset. Every launch gets new random signed operands, and C is compared with
NumPy's product. Where a module is no product that this can tell, every schedule must give the same
bytes; where the design is given that a lowered module was made of, the bytes that it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.actors import Deadlock, RestStateError
from npu_matmul.emulator.machine import Machine
from npu_matmul.instructions import StreamError, decode
from npu_matmul.kernel import Kernel
from npu_matmul.launch import LaunchShape
from npu_matmul.lowered.core import AlignmentError
from npu_matmul.lowered.locks import LockError
from npu_matmul.lowered.machine import LoweredCounters, LoweredMachine
from npu_matmul.lowered.memory import RaceError
from npu_matmul.lowered.schedules import FIXED, Schedule, schedules
from npu_matmul.mlir.reader import DesignError, read_design
from npu_matmul.overlay import Tile
from npu_matmul.streams import launch_stream
from npu_matmul.target import NPU1, Target
from npu_matmul.verify.product import NoProduct, Product
from npu_matmul.verify.subject import Problem, Subject, module_problem, stream_problems
from npu_matmul.verify.traffic import Trial, expected_words, trial_memories, trial_of_stream

MANY_CALLS = 1_000  # of a module's own sequence: with more it is run under the first schedule only

Progress = Callable[[int, int, str], None]  # done, of how many, the schedule that is run


@dataclass
class Verdict:
    """What was run, and what is wrong; ``reference`` says what values were compared with.

    Counters are of all schedules together. A seed gives the operands, and the random schedules.
    """

    name: str
    level: str
    reference: str
    seed: int
    product: Product | None = None
    compared: bool = True  # with a reference, not only with other schedules
    schedules: list[str] = field(default_factory=list)
    own_schedules: int = 0  # of these, with the launch that the module or its stream gives
    bytes_compared: int = 0
    counters: LoweredCounters = field(default_factory=LoweredCounters)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def disagrees(self) -> str:
        """Which part is wrong: "module", "stream", both, or none."""
        return " and ".join(dict.fromkeys(problem.part for problem in self.problems))


def verify_build(
    kernel: Kernel,
    shape: LaunchShape,
    lowered: str,
    insts: bytes,
    target: Target = NPU1,
    *,
    count: int = 12,
    seed: int = 0,
) -> Verdict:
    """Whether what a toolchain made of a kernel's design and of one launch can be published.

    ``lowered`` is the module after allocation, ``insts`` the toolchain's own stream for the launch
    of ``shape`` on ``target``. The module is run on the project's streams, and its runtime
    sequence must be that launch; the toolchain's stream must equal the project's word for word. So
    ``disagrees`` says which of the two is wrong.
    """
    ours = launch_stream(kernel, shape, target)
    name = f"{kernel.name}.mlir"
    subject = Subject(read_design(lowered, name), name, None, built=kernel)
    if not _is_of(subject.product, kernel):
        grid = f"{kernel.grid.rows}x{kernel.grid.columns} cores"
        text = f"the module's product is {subject.reference}; built was {kernel.name}"
        subject.problems.append(module_problem("kernel", f"{text} {kernel.variant} of {grid}"))
    for trial in subject.own:
        for problem in stream_problems(ours, trial.stream.encode()):
            subject.problems.append(module_problem("sequence", problem.text))
    if not subject.own and subject.runnable:
        stream = decode(ours)
        trial = trial_of_stream("of the build", stream, subject.overlay, subject.product)
        subject.own.append(trial)
    verdict = _verdict(subject, count, seed)
    verdict.problems += stream_problems(ours, insts)
    return verdict


def _is_of(product: Product | None, kernel: Kernel) -> bool:
    """Whether a product is computed by a kernel's functions on its grid of cores."""
    if product is None or product.kernel is not kernel:
        return False
    return (len(product.cores), len(product.cores[0])) == (kernel.grid.rows, kernel.grid.columns)


def verify_text(
    text: str,
    name: str = "design.mlir",
    *,
    insts: bytes | None = None,
    design: tuple[str, str] | None = None,
    count: int = 12,
    seed: int = 0,
    progress: Progress = lambda done, total, schedule: None,
) -> Verdict:
    """Run a module's text under ``count`` schedules, the random ones from ``seed`` on.

    ``insts``, if given, must be the stream of the module's runtime sequence; of a module without
    one it is the launch that is run. ``design``, if given, is the text and the name of a design
    that must give the same bytes. Raises ``DesignError`` for what cannot be read.
    """
    subject = Subject(read_design(text, name), name, insts)
    if design is None:
        return _verdict(subject, count, seed, progress)
    source, source_name = design
    original = Subject(read_design(source, source_name), source_name, insts)
    original.product = None  # what it gives is compared, not it with a product
    return _verdict(subject, count, seed, progress, original)


def _verdict(
    subject: Subject,
    count: int,
    seed: int,
    progress: Progress = lambda done, total, schedule: None,
    original: Subject | None = None,
) -> Verdict:
    reference = subject.reference
    if original is not None:
        given = f"what {original.name} gives"
        reference = given if subject.product is None else f"{reference}, and {given}"
    verdict = Verdict(subject.name, subject.level, reference, seed, subject.product)
    verdict.compared = subject.product is not None or original is not None
    verdict.problems += subject.problems
    if subject.runnable:
        planned = list(schedules(count, seed, subject.coarse))
        _run_all(subject, verdict, planned, progress, original)
    return verdict


def _run_all(
    subject: Subject,
    verdict: Verdict,
    planned: list[Schedule],
    progress: Progress,
    original: Subject | None,
) -> None:
    """Each schedule on a machine of its own, up to the first that goes wrong."""
    witness = None if subject.product is not None and original is None else Witness()
    random = np.random.default_rng(verdict.seed)
    trials = [*subject.own, *subject.made_up]
    runs = [(subject, schedule) for schedule in planned]
    if original is not None:
        runs.insert(0, (original, FIXED))
    for number, (runner, schedule) in enumerate(runs):
        progress(number, len(runs), schedule.name)
        if witness is not None:  # the same operands for all, so that results compare
            random = np.random.default_rng(verdict.seed)
        name = f"{runner.name} under {schedule.name}" if runner is original else schedule.name
        if runner is subject:
            verdict.schedules.append(schedule.name)
        machine: Machine | LoweredMachine | None = None
        try:
            machine = runner.boot(schedule)
            steps: dict[Tile, int] = {}
            for trial in trials:
                results = launch_trial(machine, trial, runner, steps, random, verdict)
                verdict.own_schedules += any(trial is own for own in subject.own)
                if witness is not None:
                    verdict.bytes_compared += witness.compare(name, trial, results)
        except (EmulationError, StreamError, DesignError, WrongValues) as error:
            text = f"{runner.name}: {error}" if runner is original else str(error)
            verdict.problems.append(module_problem(_kind(error), text, schedule.name))
            return
        finally:
            if machine is not None and runner is subject:
                _add(verdict.counters, machine)
        if not verdict.schedules[1:] and runner is subject:
            verdict.problems += _unused(machine)
            if subject.made_up and machine.counters.kernel_calls > MANY_CALLS:
                trials = subject.made_up
    progress(len(runs), len(runs), "")


def _unused(machine: Machine | LoweredMachine) -> Iterator[Problem]:
    """What no launch has used is not shown to be right."""
    if isinstance(machine, LoweredMachine):
        for part in machine.unused():
            yield module_problem("unused", f"{part} moved and computed nothing in any launch")


class WrongValues(Exception):
    """C is not the product, or not what it was elsewhere."""


class Witness:
    """What launches gave before: with the same operands they must give it again."""

    def __init__(self) -> None:
        self._given: dict[str, tuple[str, list[NDArray[np.uint8]]]] = {}

    def compare(self, name: str, trial: Trial, results: list[NDArray[np.uint8]]) -> int:
        """How many bytes were compared; raises :class:`WrongValues` at the first that differs."""
        if trial.name not in self._given:
            self._given[trial.name] = name, results
            return 0
        other, given = self._given[trial.name]
        outputs = [a.name for n, a in enumerate(trial.arguments) if n not in trial.inputs]
        for output, want, got in zip(outputs, given, results, strict=True):
            wrong = np.flatnonzero(want != got)
            if wrong.size:
                first = int(wrong[0])
                raise WrongValues(
                    f"launch {trial.name}: byte {first:,} of %{output} is {got[first]}, by {other} "
                    f"it is {want[first]}; {wrong.size:,} of {want.size:,} bytes differ"
                )
        return sum(found.size for found in results)


def launch_trial(
    machine: Machine | LoweredMachine,
    trial: Trial,
    subject: Subject,
    steps: dict[Tile, int],
    random: np.random.Generator,
    verdict: Verdict,
) -> list[NDArray[np.uint8]]:
    """Run one launch on new operands; what it wrote, after the comparison."""
    memories = trial_memories(trial, random)
    buffers = [memory.words for memory in memories]
    given = [words.copy() for words in buffers]
    machine.launch(trial.stream, memories)
    steps.update(trial.steps)
    if subject.product is not None:
        _compare(trial, subject.product, given, buffers, steps, verdict)
    return [
        memory.words.view(np.uint8) for n, memory in enumerate(memories) if n not in trial.inputs
    ]


def _compare(
    trial: Trial,
    product: Product,
    given: list[NDArray[Any]],
    buffers: list[NDArray[Any]],
    steps: dict[Tile, int],
    verdict: Verdict,
) -> None:
    """C against NumPy's product, element by element."""
    try:
        expected = expected_words(trial, product, given, steps)
    except NoProduct as why:
        raise WrongValues(f"launch {trial.name} is no product: {why}") from None
    dtype = product.kernel.c_dtype
    for name in product.c:
        parts = [buffers[argument][words] for argument, words in trial.writes[name]]
        got = np.concatenate(parts).view(dtype) if parts else np.empty(0, dtype)
        want = expected[name]
        if got.size != want.size:
            raise WrongValues(
                f"launch {trial.name}: @{name} brings {got.size} elements of C, the product has "
                f"{want.size}"
            )
        wrong = np.flatnonzero(got != want)
        if wrong.size:
            first = int(wrong[0])
            raise WrongValues(
                f"launch {trial.name}: {product.place_of(name, first)}: got {got[first]}, the "
                f"product is {want[first]}; {wrong.size:,} of {want.size:,} elements of @{name} "
                "are wrong"
            )
        verdict.bytes_compared += want.nbytes


def _kind(error: Exception) -> str:
    kinds = {
        RaceError: "race",
        AlignmentError: "alignment",
        LockError: "lock",
        Deadlock: "deadlock",
        RestStateError: "rest state",
        WrongValues: "values",
        StreamError: "stream rules",
        DesignError: "design",
    }
    return kinds.get(type(error), "execution")


def _add(total: LoweredCounters, machine: Machine | LoweredMachine) -> None:
    for name, value in vars(machine.counters).items():
        setattr(total, name, getattr(total, name) + value)
