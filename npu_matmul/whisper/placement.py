"""Where and how each product of the encoder is computed: precisions by name, attention by a rule.

A projection's name is that of its parameters without ``.weight``: ``conv1``,
``blocks.0.attn.query``, ``blocks.5.mlp.2``. The products inside attention are called
``blocks.0.attn.qk`` (queries with keys) and ``blocks.0.attn.wv`` (weights with values).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from npu_matmul.device import Device, HostDevice
from npu_matmul.precision import PRECISIONS

DEFAULT_PRECISION = "bf16"
PLACES = ("auto", "host", "device")
ATTENTION_PRODUCTS = ("attn.qk", "attn.wv")
# Both operands are activations there: quantising them by row and column for products of K = 64
# costs accuracy where it saves least. A pattern that names these products overrides it.
ATTENTION_PRECISION = {"bf16": "bf16", "bf16x3": "bf16x3", "int8": "bf16"}

PrecisionChoice = str | Mapping[str, str]
# device, tokens, width of a head, precision of its products -> "host" or "device"
AttentionRule = Callable[[Device, int, int, str], str]


def precisions(choice: PrecisionChoice, names: Iterable[str]) -> dict[str, str]:
    """The precision of each of these products.

    ``choice`` is one precision for all, or maps patterns (as of a shell: ``*``, ``?``, ``[…]``) to
    precisions; the last pattern that matches a name decides, and what none matches is bf16.

    Raises:
        ValueError: a precision that does not exist, or a pattern that matches no name.

    >>> names = ["conv1", "blocks.0.mlp.0", "blocks.0.mlp.2", "blocks.0.attn.qk"]
    >>> precisions({"*": "int8", "*.mlp.2": "bf16x3"}, names)
    {'conv1': 'int8', 'blocks.0.mlp.0': 'int8', 'blocks.0.mlp.2': 'bf16x3', 'blocks.0.attn.qk': \
'bf16'}
    """
    patterns = {"*": choice} if isinstance(choice, str) else dict(choice)
    names = list(names)
    for pattern, precision in patterns.items():
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"there is no precision {precision!r}; known are: {known}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"the pattern {pattern!r} matches no product; their names are like "
                f"{', '.join(_examples(names))}"
            )
    return {name: _precision_of(name, patterns) for name in names}


def _precision_of(name: str, patterns: Mapping[str, str]) -> str:
    chosen = DEFAULT_PRECISION
    for pattern, precision in patterns.items():
        if not fnmatchcase(name, pattern):
            continue
        by_name = "qk" in pattern or "wv" in pattern
        inside_attention = name.endswith(ATTENTION_PRODUCTS)
        chosen = ATTENTION_PRECISION[precision] if inside_attention and not by_name else precision
    return chosen


def _examples(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("blocks.") or ".0." in name]


def attention_rule(device: Device, tokens: int, head_width: int, precision: str) -> str:
    """ "device" where the two products of a head pay on ``device``, else "host"; for
    ``attention="auto"``.

    On an NPU they do not: with K = 64 the first writes 4 bytes for every 64 multiplications, the
    second reads what the first wrote, and both operands must be packed each time. Published for
    1536 x 64 x 1536 on a Ryzen 8845HS in bf16: 0.78 ms for one of them, without packing
    (github.com/drakosha/whisper-xdna). On the CPU they do only where int8 was asked for, which the
    host has no attention in; else it keeps scores in the cache that a device writes to memory.
    A planner that knows a machine better is given to the encoder in this function's place.
    """
    return "device" if isinstance(device, HostDevice) and precision == "int8" else "host"
