"""The plan of a Whisper encoder: each kind of projection, how often it is computed, the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from npu_matmul.performance.product import Npu
from npu_matmul.plan.planning import Plan, Shape, plan_product
from npu_matmul.whisper.dimensions import KERNEL_WIDTH, MLP_FACTOR, STRIDE, Dimensions


@dataclass(frozen=True)
class Projection:
    """A product of the encoder, its plan, and how many there are in one window of 30 s."""

    name: str
    count: int
    plan: Plan

    @property
    def device_s(self) -> float:
        return self.count * self.plan.chosen.device_s

    @property
    def total_s(self) -> float:
        return self.count * self.plan.chosen.total_s

    @property
    def cpu_s(self) -> float | None:
        cpu = self.plan.cpu
        return None if cpu is None else self.count * cpu.seconds_for(self.plan.shape[0])


def projections(dims: Dimensions) -> list[tuple[str, Shape, int]]:
    """Every product with constant weights: its name, (M, K, N), and how many there are.

    >>> from npu_matmul.whisper.dimensions import SIZES
    >>> projections(SIZES["base"])[2]
    ('attn.qkv', (1500, 512, 1536), 6)
    """
    state, tokens, layers = dims.n_audio_state, dims.n_audio_ctx, dims.n_audio_layer
    wide = MLP_FACTOR * state
    return [
        ("conv1", (STRIDE * tokens, KERNEL_WIDTH * dims.n_mels, state), 1),
        ("conv2", (tokens, KERNEL_WIDTH * state, state), 1),
        ("attn.qkv", (tokens, state, 3 * state), layers),
        ("attn.out", (tokens, state, state), layers),
        ("mlp.0", (tokens, state, wide), layers),
        ("mlp.2", (tokens, wide, state), layers),
    ]


def plan_encoder(
    dims: Dimensions,
    dtype: str,
    npu: Npu,
    with_host: bool = True,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Projection]:
    """Plan each projection; weights are resident, as the encoder keeps them."""
    found = []
    for name, shape, count in projections(dims):
        on_progress(name)
        plan = plan_product(shape, dtype, npu, resident=True, with_host=with_host)
        found.append(Projection(name, count, plan))
    return found


def overlay_switches(planned: Sequence[Projection]) -> int:
    """Changes of the overlay in one window, one layer after the other."""
    layers = max(projection.count for projection in planned)
    front = [p.plan.chosen.grid.kernel for p in planned if p.count == 1]
    layer = [p.plan.chosen.grid.kernel for p in planned if p.count > 1]
    order = [*front, *(layer * layers)]
    return sum(before != after for before, after in pairwise(order))
