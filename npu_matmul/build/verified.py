"""A build's products are run on the emulated NPU before they may be used: the module that aiecc
lowered, lock by lock, and aiecc's instruction stream against ours."""

from __future__ import annotations

from npu_matmul.build.plan import RELEASES, reference_problem
from npu_matmul.kernel import Kernel, KernelNotBuilt
from npu_matmul.mlir.reader import DesignError
from npu_matmul.schedule import cover
from npu_matmul.target import TARGETS
from npu_matmul.tiler import TileGrid
from npu_matmul.verify.product import NoProduct
from npu_matmul.verify.run import verify_build

SHOWN_PROBLEMS = 3


class BuildRefused(KernelNotBuilt):
    """What the toolchain made of a kernel is not what the kernel says; the message says where."""


def verified(kernel: Kernel, target: str, lowered: str, insts: bytes) -> str:
    """What was shown of the lowered module and the stream of the reference product, in a line.

    Raises :class:`BuildRefused`, which tells whether the module or the stream disagrees.
    """
    grid = TileGrid(kernel, *reference_problem(kernel))
    (launch,) = cover(grid, target=TARGETS[target])
    label = f"kernel {kernel.name!r}, variant {kernel.variant!r}"
    try:
        verdict = verify_build(kernel, launch.shape, lowered, insts, TARGETS[target])
    except (DesignError, NoProduct) as error:
        raise BuildRefused(
            f"{label}: the module that aiecc lowered cannot be run, so nothing is published: "
            f"{error}\nWhat can be run is what {RELEASES} lower designs to."
        ) from error
    if verdict.ok:
        runs = verdict.counters.launches
        return f"{runs} launches under {len(verdict.schedules)} schedules right, stream equal"
    places = [
        f"{problem.kind} in the {problem.part}: {problem.text}" for problem in verdict.problems
    ]
    more = len(places) - SHOWN_PROBLEMS
    shown = places[:SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    raise BuildRefused(
        f"{label}: what the toolchain made is wrong, so nothing is published; the "
        f"{verdict.disagrees} disagrees with the design:\n" + "\n".join(f"  {p}" for p in shown)
    )
