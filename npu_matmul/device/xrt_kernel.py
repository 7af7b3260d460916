"""An overlay on a real NPU: how its instruction streams become runs, one by one or in chains."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npu_matmul.build.cache import Built, find_built
from npu_matmul.build.identity import included
from npu_matmul.device.buffer import Buffer
from npu_matmul.device.errors import BufferSizeError, DeviceError, LaunchFailed
from npu_matmul.device.npu import LoadedKernel, NpuDevice, Run
from npu_matmul.device.self_test import LaunchAll, self_test
from npu_matmul.device.xrt_contexts import (
    FIRST_DATA,
    INSTRUCTIONS,
    OPCODE,
    WORDS,
    Context,
    Registered,
)
from npu_matmul.device.xrt_errors import LaunchNotStarted, OverlayMismatch, reported
from npu_matmul.device.xrt_memory import Memory, xrt_buffers
from npu_matmul.device.xrt_npu import Npu
from npu_matmul.device.xrt_runs import IN_FLIGHT, Flight, XrtRun
from npu_matmul.instructions import Stream
from npu_matmul.kernel import Kernel, KernelNotBuilt
from npu_matmul.kernel_watch import stamps
from npu_matmul.schedule import LIMITS
from npu_matmul.streams import stream_cycles, written_arguments
from npu_matmul.target import WORD_BYTES
from npu_matmul.timeline import listening

RUN_INSTRUCTIONS = 3  # the opcode of a launch
CONTEXT_COMMANDS = 4  # HWCTX_MAX_CMDS of amdxdna: submitting a fifth blocks inside XRT
CHAIN_RUNS = 24  # of one command: submit_size of XRT's runlist, which cuts longer ones
CACHE_LINE_BYTES = 64

Launches = Sequence[tuple[bytes, Sequence[Buffer]]]

log = logging.getLogger("npu_matmul")


@dataclass(frozen=True)
class Instructions:
    """A stream, in the memory that the firmware reads it from."""

    memory: Memory
    stream: bytes
    written: frozenset[int]  # the buffer arguments that its transfers write
    cycles: int  # of one launch, a pessimistic estimate


class XrtKernel(LoadedKernel):
    """An overlay from the cache, checked against the kernel."""

    def __init__(self, device: NpuDevice, npu: Npu, kernel: Kernel) -> None:
        super().__init__(device, kernel)
        self.npu = npu
        self._lock = npu.launching  # one for all kernels: contexts are shared between them
        self._times_forgotten = 0
        target = npu.target.name
        if target not in kernel.targets:
            raise KernelNotBuilt(
                f"kernel {kernel.name!r} is for {', '.join(kernel.targets)}; this NPU, "
                f"{npu.model}, is {target}"
            )
        self._sources = _stamped(kernel)  # before they are compared with what was built
        self.overlay = self._register(find_built(kernel, target))

    def is_current(self) -> bool:
        """Whether the overlay is still that of the kernel's sources; raises ``KernelNotBuilt``
        where they have changed and were not built again."""
        if stamps(self._sources) != tuple(self._sources.values()):
            sources = _stamped(self.kernel)
            if find_built(self.kernel, self.npu.target.name).name != self.overlay.name:
                return False
            self._sources = sources
        return True

    def launch_all(self, launches: Iterable[tuple[bytes, Sequence[Buffer]]]) -> None:
        """Launch several, as chains where those work, and wait for all.

        Chains are for three or more: the last launch of one is submitted alone.
        """
        for part in self._parts(launches):
            together = len(part) > 2 and self._chains_work()
            for group in [part] if together else [[launch] for launch in part]:
                self._launch(group).wait(self.TIMEOUT_S)

    def start(self, launches: Launches, owner: object, relaunches: int = 0) -> Flight:
        """Start launches that were checked: one, or several in a chain."""
        self.device.require_open()
        with self._lock:
            for stream, _ in launches:
                self._prepare(stream)
            self.device.count(launches=len(launches), relaunches=relaunches)
            return self._fly(launches, owner)

    def rebuild(self, broken: Context | None) -> None:
        """Make the context anew (None: the one there is), unless another launch that failed in it
        has done so."""
        with self._lock:
            contexts = self.npu.contexts
            contexts.discard(broken or contexts.get(self.overlay))
            contexts.get(self.overlay)

    def known_product(self, launch_all: LaunchAll | None = None) -> str | None:
        """The self-test, without a trace in counts and kept streams: None, or what is wrong."""
        with self._lock, self.device.uncounted():
            self.npu.contexts.get(self.overlay)  # so that buffers are of its memory group
            kept, forgotten = self._streams, self._times_forgotten
            self._streams = kept.copy()
            try:
                return self_test(self, launch_all)
            finally:
                if self._times_forgotten == forgotten:
                    self._streams = kept

    def forget_streams(self) -> None:
        with self._lock:
            super().forget_streams()
            self._times_forgotten += 1

    def _register(self, built: Built) -> Registered:
        """Make the device know an overlay, which must name the kernel that is meant."""
        api, label = self.npu.api, f"kernel {self.kernel.name!r} ({self.kernel.variant})"
        with reported(f"the overlay of {label}, {built.xclbin}", OverlayMismatch):
            xclbin = api.xclbin(str(built.xclbin))
            kernels = xclbin.get_kernels()
            found = {kernel.get_name(): int(kernel.get_num_args()) for kernel in kernels}
            uuid = self.npu.handle.register_xclbin(xclbin) if built.name in found else None
        if uuid is None:
            raise OverlayMismatch(
                f"{built.xclbin} holds {', '.join(found) or 'no kernel'}, not {built.name}, which "
                f"{label} is; run: npu-matmul build {self.kernel.name} --force"
            )
        return Registered(uuid, built.name, label, found[built.name], self.forget_streams)

    def _load_instructions(self, stream: bytes, decoded: Stream) -> Instructions:
        context = self.npu.contexts.get(self.overlay)
        flags, group = self.npu.api.bo.flags.cacheable, context.instruction_group
        memory = self.npu.memory(len(stream), flags, group, self.device.make_room)
        memory.array()[:] = np.frombuffer(stream, np.uint8)
        with reported("a sync of instructions"):
            memory.bo.sync(self.npu.api.xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE)
        cycles = stream_cycles(self.kernel, decoded)
        return Instructions(memory, stream, frozenset(written_arguments(decoded)), cycles)

    def _start(self, instructions: Instructions, buffers: Sequence[Buffer]) -> Run:
        launches = [(instructions.stream, tuple(buffers))]
        submission = Submission(self, launches)
        return XrtRun(submission, lambda: self._fly(launches, submission))

    def _launch(self, launches: Launches, try_again: bool = True) -> Run:
        submission = Submission(self, launches)
        return XrtRun(submission, lambda: self.start(launches, submission), try_again)

    def _fly(self, launches: Launches, owner: object) -> Flight:
        """Start runs of streams that were prepared: all but the last in a chain.

        A chain can only be waited for inside XRT, which lets nothing else through. So the last run
        is submitted alone: a context works in order, and the end of that run is the chain's too.
        """
        memory = frozenset(b.memory for _, given in launches for b in xrt_buffers(given))
        commands = min(2, len(launches))
        if IN_FLIGHT.may_touch(memory, owner):
            raise DeviceError(
                "a launch that did not end may still use this buffer; allocate another, or restart "
                "the process"
            )
        context = self._context_with_room(commands)
        ready = [(self._prepare(stream).instructions, given) for stream, given in launches]
        with reported("the driver did not take it", LaunchNotStarted):
            runs = [self._run(context, *launch) for launch in ready]
            chain = self._chain(context, runs[:-1])
            shown = self._shown(len(launches))
            flight = Flight(context, owner, runs, chain, memory, commands, tuple(ready), shown)
            _submit(flight)
        return flight

    def _context_with_room(self, commands: int) -> Context:
        """The overlay's context, once it can take so many commands; a new one in place of one that
        a launch has failed in, which takes the streams that were prepared with it."""
        while True:
            context = self.npu.contexts.get(self.overlay)
            IN_FLIGHT.wait_for_room(context, CONTEXT_COMMANDS - commands, self.TIMEOUT_S)
            if not context.broken:
                return context
            self.npu.contexts.discard(context)

    def _shown(self, launches: int) -> listening.InFlight | listening.Nothing:
        """These launches in a timeline, from when they are submitted until their end is seen."""
        if not self.device.heard:
            return listening.NOTHING
        return listening.in_flight(f"launch {self.kernel.name}", launches=launches)

    def _chain(self, context: Context, runs: Sequence[Any]) -> Any:
        if not runs:
            return None
        chain = self.npu.api.runlist(context.hardware)
        for run in runs:
            chain.add(run)
        return chain

    def _run(self, context: Context, instructions: Instructions, given: Sequence[Buffer]) -> Any:
        """A run with all its arguments. XRT checks neither their number nor, in ``kernel(...)``,
        their types."""
        room = self.overlay.arguments - FIRST_DATA
        if len(given) > room:
            raise DeviceError(f"{len(given)} data buffers given; the overlay has room for {room}")
        run = self.npu.api.run(context.kernel)
        run.set_arg(OPCODE, RUN_INSTRUCTIONS)
        run.set_arg(INSTRUCTIONS, instructions.memory.bo)
        run.set_arg(WORDS, len(instructions.stream) // WORD_BYTES)
        for number, buffer in enumerate(xrt_buffers(given)):
            if number in instructions.written and buffer.offset_bytes % CACHE_LINE_BYTES:
                raise BufferSizeError(
                    f"buffer argument {number} is written by the NPU and begins at byte "
                    f"{buffer.offset_bytes} of its buffer; it must begin at a cache line, a "
                    f"multiple of {CACHE_LINE_BYTES} B"
                )
            run.set_arg(FIRST_DATA + number, buffer.argument())
        return run

    def _parts(self, launches: Iterable[tuple[bytes, Sequence[Buffer]]]) -> Iterator[Launches]:
        """Launches, checked, in parts that may be one chain each: the driver's watchdog sees a
        chain as one job, so it may take as long as one launch may."""
        part: list[tuple[bytes, Sequence[Buffer]]] = []
        cycles = 0
        for stream, buffers in launches:
            with self._lock:
                needed = self._checked(stream, buffers).instructions.cycles
            if part and (len(part) == CHAIN_RUNS or cycles + needed > LIMITS.core_cycles):
                yield part
                part, cycles = [], 0
            part.append((stream, buffers))
            cycles += needed
        if part:
            yield part

    def _chains_work(self) -> bool:
        """Whether XRT's run lists do what they should: tried once, with a known product."""
        npu = self.npu
        with self._lock:
            if npu.chains is None:
                problem = self._try_chain()
                npu.chains = problem is None
                if problem is not None:
                    log.info("launching one by one, as chains do not work: %s", problem)
            return npu.chains

    def _try_chain(self) -> str | None:
        if not hasattr(self.npu.api, "runlist"):
            return "this pyxrt has no runlist"
        context = self.npu.contexts.get(self.overlay)

        def chained(launches: Iterable[tuple[bytes, Sequence[Buffer]]]) -> None:
            for part in self._parts(launches):
                self._launch(part, try_again=False).wait(self.TIMEOUT_S)

        try:
            problem = self.known_product(chained)
        except LaunchFailed as error:  # others say nothing of chains
            problem = str(error)
        if problem is not None:
            self.rebuild(context)
        return problem


def _stamped(kernel: Kernel) -> dict[Path, int]:
    """The files that a kernel's cores are compiled from, and when each was last written."""
    source = kernel.require_source()
    paths = source, *included(source)
    return dict(zip(paths, stamps(paths), strict=True))


def _submit(flight: Flight) -> None:
    """Start what flies; it is in ``IN_FLIGHT`` before XRT has it, so that no interrupt loses it."""
    chain = flight.chain
    IN_FLIGHT.add(flight)
    try:
        if chain is not None:
            chain.execute()
        flight.runs[-1].start()
    except RuntimeError:
        IN_FLIGHT.start_failed(flight)
        flight.shown.end(failed="not started")
        if chain is not None:  # what of it was submitted must end before memory is reused
            try:
                chain.wait()
            except RuntimeError:
                flight.context.broken = True
        raise
    except BaseException:  # an interrupt: it may have been started, or not
        IN_FLIGHT.abandon(flight)
        flight.shown.end(failed="interrupted")
        raise


@dataclass(eq=False)
class Submission:
    """Launches of a kernel that can be launched again."""

    kernel: XrtKernel
    launches: Launches

    @property
    def kernel_name(self) -> str:
        return self.kernel.kernel.name

    def start_again(self, failed: Flight | None) -> Flight:
        """Rebuild the context that it failed in, and launch once more."""
        self.kernel.rebuild(None if failed is None else failed.context)
        return self.kernel.start(self.launches, self, relaunches=len(self.launches))

    def decline(self, error: Exception) -> None:
        if not self.kernel.device.closed:
            self.kernel.npu.decline(error)
