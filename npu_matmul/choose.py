"""The planner: which kernel and strategy compute a product, by modelled time, and why.

Every kernel that fits is tried with every strategy in the model of :mod:`npu_matmul.performance`,
once per shape: :func:`choose` then finds its answer in a table that the device keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass

from npu_matmul.device import NpuDevice
from npu_matmul.kernel import (
    Kernel,
    NoKernel,
    UnknownKernel,
    kernels_on,
    load_variants,
    no_kernel,
)
from npu_matmul.kernel_watch import kernels_version
from npu_matmul.numbers import seconds_text
from npu_matmul.performance.product import Npu, predict
from npu_matmul.schedule import LimitError
from npu_matmul.strategies import STRATEGIES
from npu_matmul.target import NPU1, Target
from npu_matmul.tiler import TileGrid

# A packed B is chosen a kernel before its A is known. So many rows fill every kernel's blocks, so
# that the choice is the one for a large A.
MANY_ROWS = 1024
CHOICES_KEPT = 4096  # per device; then the table starts anew


@dataclass(frozen=True)
class Choice:
    """A kernel and why, a strategy and how it was chosen; ``faster`` are kernels that would take
    less time, but could not be loaded."""

    kernel: Kernel
    why: str
    strategy: str
    how: str
    faster: tuple[Kernel, ...] = ()


def choose(
    device: NpuDevice,
    types: tuple[str, str, str],
    problem: tuple[int, ...],
    kernel: str | Kernel | None = None,
    strategy: str | None = None,
) -> Choice:
    """What computes a problem (M, K, N), or (M, K, N, terms), on a device: kernel and strategy as
    asked for, else those of the least modelled time. Kernels that the device can load come first.

    Raises as :func:`choose_kernel`.

    >>> from npu_matmul.device import open_device
    >>> choice = choose(open_device("emulated"), ("int8", "int8", "int32"), (1500, 512, 512))
    >>> choice.kernel.name, choice.strategy
    ('matmul_64x512', 'batched')
    """
    key = types, problem, kernel, strategy, kernels_version()
    found: Choice | None = device.choices.get(key)
    if found is not None and not any(map(device.can_load, found.faster)):
        return found
    chosen, why, faster = _decide(kernel, types, problem, device.target, device.can_load, strategy)
    unbuilt = [pair for pair in faster if pair[1] not in device.unfit]
    why += f"; not built: {_listed(unbuilt)}" if unbuilt else ""
    if kernel is None:
        unfit = sorted({k.name for k in device.unfit if astuple(k.types) == types} - {chosen.name})
        why += f"; not {', '.join(unfit)}, which failed the self-test" if unfit else ""
    how = "as asked"
    if strategy is None:
        strategy = best_strategy(TileGrid(chosen, *problem), Npu.named(device.target.name))
        how = f"least modelled time of {len(STRATEGIES)}"
    choice = Choice(chosen, why, strategy, how, tuple(other for _, other in faster))
    if device.can_load(chosen):  # else another one may be built before the next call
        if len(device.choices) >= CHOICES_KEPT:
            device.choices.clear()
        device.choices[key] = choice
    return choice


def choose_kernel(
    kernel: str | Kernel | None,
    types: tuple[str, str, str],
    problem: tuple[int, ...],
    target: Target = NPU1,
    can_load: Callable[[Kernel], bool] = lambda _: True,
    strategy: str | None = None,
) -> tuple[Kernel, str]:
    """The kernel for element types (A, B, C), a problem (M, K, N), or (M, K, N, terms), and a
    target, and the reason: the one asked for, else the one of the least modelled time by
    ``strategy``, or by the best one. Where some can be loaded, it is one of them.

    Raises ``UnknownKernel``, ``ManifestError`` or ``KernelNotBuilt``; ``NoKernel`` where only the
    CPU can compute it.

    >>> int8 = ("int8", "int8", "int32")
    >>> kernel, why = choose_kernel(None, int8, (16, 16, 16))
    >>> kernel.name, why
    ('matmul_16x16', 'least modelled time, 0.162 ms; matmul_64x512 0.218 ms')
    """
    return _decide(kernel, types, problem, target, can_load, strategy)[:2]


def _decide(
    kernel: str | Kernel | None,
    types: tuple[str, str, str],
    problem: tuple[int, ...],
    target: Target,
    can_load: Callable[[Kernel], bool],
    strategy: str | None,
) -> tuple[Kernel, str, list[tuple[float, Kernel]]]:
    """As :func:`choose_kernel`, and with their modelled seconds those that would be faster but
    cannot be loaded."""
    if kernel is not None:
        return _asked_for(kernel, types, target), "as asked", []
    kernels = kernels_for(types, target)
    if not kernels:
        raise no_kernel(f"{types[0]} operands", target.name)
    if len(kernels) == 1:
        return kernels[0], f"the only one for {types[0]} operands", []
    names = STRATEGIES if strategy is None else (strategy,)
    timed = ranked(kernels, problem, Npu.named(target.name), names)
    built = [pair for pair in timed if can_load(pair[1])] or timed
    (best_s, best), *others = built
    why = f"least modelled time, {seconds_text(best_s)}; {_listed(others)}"
    if not others:
        why = f"the only one that can be loaded, {seconds_text(best_s)}"
    return best, why, timed[: timed.index(built[0])]


def ranked(
    kernels: Iterable[Kernel],
    problem: tuple[int, ...],
    npu: Npu,
    strategies: Iterable[str] = tuple(STRATEGIES),
) -> list[tuple[float, Kernel]]:
    """Each kernel with its modelled seconds by the best of these strategies, the fastest first."""
    grids = [TileGrid(kernel, *problem) for kernel in kernels]
    timed = [(min(modelled_s(grid, s, npu) for s in strategies), grid.kernel) for grid in grids]
    return sorted(timed, key=lambda pair: pair[0])


def best_strategy(grid: TileGrid, npu: Npu) -> str:
    """The one of the least modelled time; of equal ones the last, which has the fewest launches."""
    return min(reversed(STRATEGIES), key=lambda name: modelled_s(grid, name, npu))


def modelled_s(grid: TileGrid, strategy: str, npu: Npu) -> float:
    """Modelled seconds of a product on the device, without the host's stages; infinite where no
    launch of it fits the limits."""
    try:
        return predict(grid, strategy, npu).device_s
    except LimitError:
        return math.inf


def kernels_for(types: tuple[str, str, str], target: Target = NPU1) -> list[Kernel]:
    """Those on a target that are for these element types of A, B and C."""
    return [kernel for kernel in kernels_on(target.name) if astuple(kernel.types) == types]


def _listed(timed: Iterable[tuple[float, Kernel]]) -> str:
    return ", ".join(f"{kernel.name} {seconds_text(seconds)}" for seconds, kernel in timed)


def _asked_for(kernel: str | Kernel, types: tuple[str, str, str], target: Target) -> Kernel:
    variants = [kernel] if isinstance(kernel, Kernel) else load_variants(kernel).values()
    for variant in variants:
        if _is_for(variant, types, target):
            if isinstance(kernel, str):
                variant.require_source()
            return variant
    name = repr(kernel)
    if isinstance(kernel, Kernel):
        name = f"{kernel.name!r}, variant {kernel.variant!r}:"
    elsewhere = any(astuple(variant.types) == types for variant in variants)
    cure = "" if elsewhere else ": ask for a precision with such operands, or for another kernel"
    raise (NoKernel if elsewhere else UnknownKernel)(
        f"kernel {name} has nothing for {types[0]} operands on {target.name}; "
        f"it is for {', '.join(_shown(variant) for variant in variants)}{cure}"
    )


def _is_for(kernel: Kernel, types: tuple[str, str, str], target: Target) -> bool:
    return astuple(kernel.types) == types and target.name in kernel.targets


def _shown(kernel: Kernel) -> str:
    return f"{kernel.types.a} on {' or '.join(kernel.targets)}"
