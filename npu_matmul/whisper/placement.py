"""Where and how each product of the encoder is computed: precisions by name, attention by a rule.

A projection's name is that of its parameters without ``.weight``: ``conv1``,
``blocks.0.attn.query``, ``blocks.5.mlp.2``. The products inside attention are called
``blocks.0.attn.qk`` (queries with keys) and ``blocks.0.attn.wv`` (weights with values).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache

import numpy as np

from npu_matmul.choose import choose
from npu_matmul.device import Device, NpuDevice
from npu_matmul.host.attention import attention as attend_in_bf16
from npu_matmul.host.attention import usable
from npu_matmul.kernel import UnknownKernel
from npu_matmul.performance.host import REPEATS, measure_host
from npu_matmul.performance.product import Npu, predict
from npu_matmul.performance.published import MOST_RATIO
from npu_matmul.precision import PRECISIONS
from npu_matmul.tiler import TileGrid
from npu_matmul.whisper.elementwise import softmax

DEFAULT_PRECISION = "bf16"
PLACES = ("auto", "host", "device")
ATTENTION_PRODUCTS = ("attn.qk", "attn.wv")
# Both operands are activations there: quantising them by row and column for products of K = 64
# costs accuracy where it saves least. A pattern that names these products overrides it.
ATTENTION_PRECISION = {"bf16": "bf16", "bf16x3": "bf16x3", "int8": "bf16"}

PrecisionChoice = str | Mapping[str, str] | Sequence[tuple[str, str]]
# device, tokens, width of a head, precision of its products -> "host" or "device"
AttentionRule = Callable[[Device, int, int, str], str]


def precisions(choice: PrecisionChoice, names: Iterable[str]) -> dict[str, str]:
    """The precision of each of these products.

    ``choice`` is one precision for all, or maps patterns (as of a shell: ``*``, ``?``, ``[…]``) to
    precisions, or is pairs of both; the last pattern that matches a name decides, and what none
    matches is bf16.

    Raises:
        ValueError: a precision that does not exist, or a pattern that matches no name.

    >>> names = ["conv1", "blocks.0.mlp.0", "blocks.0.mlp.2", "blocks.0.attn.qk"]
    >>> precisions({"*": "int8", "*.mlp.2": "bf16x3"}, names)
    {'conv1': 'int8', 'blocks.0.mlp.0': 'int8', 'blocks.0.mlp.2': 'bf16x3', 'blocks.0.attn.qk': \
'bf16'}
    """
    choice = {"*": choice} if isinstance(choice, str) else choice
    pairs = list(choice.items()) if isinstance(choice, Mapping) else list(choice)
    names = list(names)
    for pattern, precision in pairs:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"there is no precision {precision!r}; known are: {known}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"the pattern {pattern!r} matches no product; their names are like "
                f"{', '.join(_examples(names))}"
            )
    return {name: _precision_of(name, pairs) for name in names}


def _precision_of(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    chosen = DEFAULT_PRECISION
    for pattern, precision in pairs:
        if not fnmatchcase(name, pattern):
            continue
        by_name = "qk" in pattern or "wv" in pattern
        inside_attention = name.endswith(ATTENTION_PRODUCTS)
        chosen = ATTENTION_PRECISION[precision] if inside_attention and not by_name else precision
    return chosen


def _examples(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("blocks.") or ".0." in name]


def attention_places(
    how: Mapping[str, str], attention: str, ask: Callable[[str], str]
) -> list[str]:
    """Where the products inside attention are computed, "host" or "device", layer by layer.

    ``how`` has the precision of each product of an encoder. ``attention`` is a place for all, or
    "auto": on the device in layers where one of the two is int8, which the host has not, else as
    ``ask`` says, once for "bf16x3" (one of the two is) and once for "bf16".

    Raises:
        ValueError: no such place, or int8 on the host.

    >>> how = {"blocks.0.attn.qk": "int8", "blocks.0.attn.wv": "bf16"}
    >>> attention_places(how, "auto", lambda precision: "host")
    ['device']
    """
    ask = cache(ask)
    places = []
    for layer, precision in enumerate(attention_precisions(how)):
        if precision == "int8" and attention == "host":
            raise ValueError(
                f"blocks.{layer}.attn.qk or .wv is int8, which the host has not inside attention: "
                "choose another precision there, or attention 'device'"
            )
        place = attention
        if attention == "auto":
            place = "device" if precision == "int8" else ask(precision)
        if place not in PLACES[1:]:
            raise ValueError(f"attention is {place!r}; allowed are {', '.join(PLACES)}")
        places.append(place)
    return places


def attention_precisions(how: Mapping[str, str]) -> list[str]:
    """Layer by layer, of the two products inside attention: "int8" where one of them is, else
    "bf16x3" where one is, else "bf16".

    >>> attention_precisions({"blocks.0.attn.qk": "bf16", "blocks.0.attn.wv": "bf16x3"})
    ['bf16x3']
    """
    first, second = ([how[n] for n in how if n.endswith(part)] for part in ATTENTION_PRODUCTS)
    pairs = zip(first, second, strict=True)
    return [next(p for p in ("int8", "bf16x3", "bf16") if p in pair) for pair in pairs]


@dataclass(frozen=True)
class Decision:
    """Where the products inside attention are computed on a machine with an NPU, and why: seconds
    of a head on the host, measured, and of its products on the NPU, modelled."""

    precision: str
    host_s: float
    npu_s: float

    @property
    def place(self) -> str:
        """The NPU where it is faster even if the model errs by as much as published measurements
        do."""
        return "device" if MOST_RATIO * self.npu_s < self.host_s else "host"

    def __str__(self) -> str:
        npu = f"{self.npu_s * 1e3:.2f} ms on the NPU (modelled; up to {MOST_RATIO} times that)"
        if self.npu_s == math.inf:
            npu = "the NPU has no kernel for it"
        return (
            f"attention in {self.precision} on the {self.place}: a head takes "
            f"{self.host_s * 1e3:.2f} ms on the host (measured), {npu}"
        )


def decide(device: NpuDevice, tokens: int, head_width: int, precision: str) -> Decision:
    """Measure the host and ask the model, now."""
    return Decision(
        precision,
        host_s=measured_head_s(tokens, head_width, precision),
        npu_s=modelled_head_s(device, tokens, head_width, precision),
    )


def attention_rule(device: Device, tokens: int, head_width: int, precision: str) -> str:
    """ "device" where the two products of a head pay on ``device``, else "host"; for
    ``attention="auto"``.

    On an NPU :class:`Decision` says so, which K = 64 rarely makes it do: the first writes 4 bytes
    for every 64 multiplications and the second reads what the first wrote. The host, also what it
    does around launches, is measured once per process. On the CPU they do not pay: the host's own
    attention keeps in the cache what a device writes to memory.
    """
    if isinstance(device, NpuDevice):
        return decide(device, tokens, head_width, precision).place
    return "host"


def modelled_head_s(device: NpuDevice, tokens: int, head_width: int, precision: str) -> float:
    """Seconds of both products of a head on an NPU, modelled, with the host's packing and
    unpacking; infinite where there is no kernel for them. Without softmax."""
    how, npu = PRECISIONS[precision], Npu.named(device.target.name)
    total_s = 0.0
    for shape in ((tokens, head_width, tokens), (tokens, tokens, head_width)):
        problem = (*shape, how.terms)
        try:
            choice = choose(device, how.types, problem)
        except UnknownKernel:
            return math.inf
        rates = measure_host(choice.kernel, how)
        grid = TileGrid(choice.kernel, *problem)
        total_s += predict(grid, choice.strategy, npu, rates=rates).total_s
    return total_s


@lru_cache(maxsize=16)
def measured_head_s(tokens: int, head_width: int, precision: str) -> float:
    """Seconds of a head's attention on this host: the best of a few."""
    random = np.random.default_rng(0)
    query, key, value = random.standard_normal((3, tokens, head_width), np.float32)
    mixed, scores = np.empty_like(query), np.empty((tokens, tokens), np.float32)

    def attend() -> None:
        if precision == "bf16" and usable():
            attend_in_bf16(query, key, value, mixed, tokens, head_width)
        else:
            np.matmul(query, key.T, out=scores)
            softmax(scores)
            np.matmul(scores, value, out=mixed)

    attend()  # compiles
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        attend()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
