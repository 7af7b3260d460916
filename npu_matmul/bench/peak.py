"""What this CPU can do at most: instructions on registers alone, and plain copies of memory.

Each probe is a loop of one multiply-add instruction, or the pair that does it, on accumulators that
stay in registers: as many as hide its latency, and no loads. Nothing that multiplies with that
instruction can be faster. The instructions are written as inline assembly, so that no compiler
folds, hoists or splits them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npu_matmul.bench.environment import last_level_cache_bytes

INSTRUCTIONS = 100_000_000  # of one call: over 10 ms, so that starting threads is nothing
SMALL_COPY_BYTES = 3 << 20  # of each array: a (1500, 512) float32 matrix, within the last cache


@dataclass(frozen=True)
class Probe:
    """``assembly`` works on accumulator $0 and operands $1, $2; ``operations`` counts each multiply
    and each add of one execution."""

    kind: str
    instruction: str
    bits: int
    feature: str  # as LLVM names it
    assembly: str
    operations: int
    accumulators: int
    scratch: str = ""  # a register that the assembly overwrites, as LLVM's constraint


PROBES = (
    Probe(
        kind="int8",
        instruction="vpdpbusd",
        bits=512,
        feature="avx512vnni",
        assembly="vpdpbusd $1, $2, $0",
        operations=128,
        accumulators=24,
    ),
    Probe(
        kind="int8 AVX2",
        instruction="vpmaddwd+vpaddd",  # each product of pairs has to be added to its sums
        bits=256,
        feature="avx2",
        assembly="vpmaddwd $1, $2, %ymm15; vpaddd %ymm15, $0, $0",
        operations=32,
        accumulators=12,
        scratch="~{ymm15}",
    ),
    Probe(
        kind="bf16",
        instruction="vdpbf16ps",
        bits=512,
        feature="avx512bf16",
        assembly="vdpbf16ps $1, $2, $0",
        operations=64,
        accumulators=24,
    ),
    Probe(
        kind="f32",
        instruction="vfmadd231ps",
        bits=512,
        feature="avx512f",
        assembly="vfmadd231ps $1, $2, $0",
        operations=32,
        accumulators=24,
    ),
    Probe(
        kind="f32 AVX2",
        instruction="vfmadd231ps",
        bits=256,
        feature="fma",
        assembly="vfmadd231ps $1, $2, $0",
        operations=16,
        accumulators=12,
    ),
)


def usable_probes() -> tuple[Probe, ...]:
    """Those whose instruction this CPU has."""
    features = llvm.get_host_cpu_features()
    return tuple(probe for probe in PROBES if features.get(probe.feature))


def skipped_probes() -> list[str]:
    """What cannot be probed here, for people."""
    return [
        f"peak {probe.kind}: not probed, this CPU has no {probe.feature}"
        for probe in PROBES
        if probe not in usable_probes()
    ]


def probe_work(probe: Probe, pool: ThreadPoolExecutor | None, threads: int) -> Callable[[], Any]:
    """One call: the loop on each of so many threads."""
    loop = _compiled(probe)
    loop(1)
    if pool is None:
        return lambda: loop(_steps(probe))
    return lambda: list(pool.map(loop, [_steps(probe)] * threads))


def operations(probe: Probe, threads: int) -> int:
    """Multiplies and adds of one call."""
    return _steps(probe) * probe.accumulators * probe.operations * threads


def _steps(probe: Probe) -> int:
    return INSTRUCTIONS // probe.accumulators


def copy_works(
    pool: ThreadPoolExecutor | None, threads: int
) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Copies within the last-level cache and beyond it (four times as much), by name: bytes read
    and written, and one call."""
    sizes = {"cache": SMALL_COPY_BYTES, "memory": 2 * last_level_cache_bytes()}
    return {name: (2 * size, _copy(size, pool, threads)) for name, size in sizes.items()}


def _copy(size: int, pool: ThreadPoolExecutor | None, threads: int) -> Callable[[], Any]:
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    if pool is None:
        return lambda: np.copyto(target, source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    return lambda: list(pool.map(lambda part: np.copyto(*part), parts))


def _compiled(probe: Probe) -> Callable[[int], None]:
    llvm.initialize_native_asmparser()  # LLVM needs it for inline assembly; numba does not
    emit = _loop(probe)

    @numba.njit(nogil=True)
    def run(steps: int) -> None:
        emit(steps)

    return run  # type: ignore[no-any-return]


def _loop(probe: Probe) -> Any:
    """An intrinsic whose code is the whole loop: accumulators are phi nodes, operands constants."""
    lanes = ir.VectorType(ir.IntType(32), probe.bits // 32)
    assembly = ir.InlineAsm(
        ir.FunctionType(lanes, [lanes] * 3), probe.assembly, _constraints(probe), side_effect=True
    )

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        before, count = builder.basic_block, arguments[0]
        body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.branch(body)
        builder.position_at_end(body)
        step = builder.phi(count.type)
        step.add_incoming(ir.Constant(count.type, 0), before)
        accumulators = [builder.phi(lanes) for _ in range(probe.accumulators)]
        for accumulator in accumulators:
            accumulator.add_incoming(ir.Constant(lanes, [0] * lanes.count), before)
            total = builder.call(assembly, [*_operands(probe, lanes), accumulator])
            accumulator.add_incoming(total, body)
        following = builder.add(step, ir.Constant(count.type, 1))
        step.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        builder.position_at_end(after)
        return _context.get_dummy_value()

    def loop(_typing: Any, steps: Any) -> Any:
        return types.void(steps), codegen

    return intrinsic(loop)


def _operands(probe: Probe, lanes: ir.VectorType) -> list[ir.Constant]:
    """Two operands with many bits set, as real ones have: zeros would draw less power. As floats of
    both widths all are between 1 and 2."""
    patterns = [lane * 0x9E3779B1 & 0xFFFFFFFF for lane in range(1, 2 * lanes.count + 1)]
    if not probe.kind.startswith("int8"):
        patterns = [pattern & 0x007F007F | 0x3F803F80 for pattern in patterns]
    halves = patterns[: lanes.count], patterns[lanes.count :]
    return [ir.Constant(lanes, half) for half in halves]


def _constraints(probe: Probe) -> str:
    """The accumulator is output and input at once; 256-bit code keeps to the registers of AVX2."""
    register = "v" if probe.bits == 512 else "x"
    constraints = f"={register},{register},{register},0"
    return f"{constraints},{probe.scratch}" if probe.scratch else constraints
