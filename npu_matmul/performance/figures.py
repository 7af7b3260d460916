"""The constants of the model: each with its unit, its source, and how far to trust it.

*Measured* was read off hardware by the source; *specified* is what the maker or its tools say of
it; *derived* follows from such figures, or from compiled code, by the arithmetic beside it;
*assumed* is what nobody has measured. None was measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

MEASURED, SPECIFIED, DERIVED, ASSUMED = "measured", "specified", "derived", "assumed"

PAPER = "arXiv 2512.13282"
IGNITE = "github.com/jdominick05/ignite-xdna, docs/SILICON.md"
WHISPER_XDNA = "github.com/drakosha/whisper-xdna"
EMBEDDINGS = "github.com/hardWorker254/Npu-Embeddings-XDNA1"
EMULATOR = "github.com/FIM43-Redeye/xdna-emu, against a Phoenix"
AMANUENSIS = "github.com/Unicorn-Commander/Unicorn-Amanuensis"

CLOCKS_GHZ = ("0.8", "1.0", "1.3", "1.6", "1.8")  # as options name them


class Figure(float):
    """A number that knows its unit, its kind (measured, or as the module says) and its source.

    >>> figure = Figure(3.9, "B/cycle", MEASURED, "a paper")
    >>> figure * 2, figure.unit, figure.kind
    (7.8, 'B/cycle', 'measured')
    """

    unit: str
    kind: str
    source: str

    def __new__(cls, value: float, unit: str, kind: str, source: str) -> Figure:
        self = super().__new__(cls, value)
        self.unit, self.kind, self.source = unit, kind, source
        return self

    def as_dict(self) -> dict[str, float | str]:
        """The number with all that it knows, for JSON."""
        return {"value": float(self), **vars(self)}

    def assumed_elsewhere(self, target: str) -> Figure:
        """The same number for a part that it was not found on."""
        return Figure(self, self.unit, ASSUMED, f"as {target}")

    def __getnewargs__(self) -> tuple[float, str, str, str]:  # type: ignore[override]
        return float(self), self.unit, self.kind, self.source


@dataclass(frozen=True)
class CoreRates:
    """How fast a core multiplies. One call of a core function on a tile m x k x n takes
    ``m k n / macs_per_cycle + m n c_cycles + call_cycles``: the loop over k, what each element of
    C costs outside of it (accumulators are loaded and stored), and the call itself.

    >>> rates = NPU1_FIGURES.int8
    >>> round(rates.cycles(64, 64, 64)), round(64**3 / rates.cycles(64, 64, 64), 1)
    (2442, 107.3)
    """

    macs_per_cycle: Figure
    c_cycles: Figure
    call_cycles: Figure

    def cycles(self, m: int, k: int, n: int) -> float:
        """Cycles of one call."""
        return m * k * n / self.macs_per_cycle + m * n * self.c_cycles + self.call_cycles


@dataclass(frozen=True)
class Figures:
    """What the model knows of one target."""

    clock_hz: Figure
    array_bytes_per_cycle: Figure  # all shims together, one direction
    channel_bytes_per_cycle: Figure  # of one shim channel
    stream_bytes_per_cycle: Figure  # between the memories of the array
    task_cycles: Figure  # from one task of the instruction stream to the next
    convert_cycles: Figure  # of a core, for each element of C that is made of a sum kept apart
    launch_s: Figure  # a launch that is submitted alone and waited for
    queued_launch_s: Figure  # one of several that were submitted together
    sync_s: Figure  # of however few bytes
    sync_bytes_per_s: Figure
    overlay_switch_s: Figure
    peak_int8: Figure
    peak_bf16: Figure
    int8: CoreRates
    bf16: CoreRates

    def rates(self, element_type: str) -> CoreRates:
        return self.int8 if element_type == "int8" else self.bf16

    def peak(self, element_type: str) -> Figure:
        """Multiplications a cycle of one core at most."""
        return self.peak_int8 if element_type == "int8" else self.peak_bf16

    def named(self) -> list[tuple[str, Figure]]:
        """Every figure with its name, those of the cores as ``int8.c_cycles``."""
        found: list[tuple[str, Figure]] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Figure):
                found.append((field.name, value))
            else:
                parts = (part.name for part in fields(value))
                found += [(f"{field.name}.{name}", getattr(value, name)) for name in parts]
        return found


_CALL = Figure(
    186, "cycles", DERIVED, f"{IGNITE}: 2,442 cycles of a 64x64x64 call less 16 blocks of 141"
)
_C_ELEMENT = Figure(
    69 / 256,
    "cycles/element of C",
    DERIVED,
    f"{IGNITE}: of 141 cycles per 16x16 block of C, 9 for each of 8 steps of k are the loop",
)

NPU1_FIGURES = Figures(
    clock_hz=Figure(
        1.6e9,
        "Hz",
        SPECIFIED,
        f"top step of the driver amdxdna for npu1; measured: 1.8 by {IGNITE}, on Windows; "
        f"{PAPER} found 1.0 on a 7940HS",
    ),
    array_bytes_per_cycle=Figure(
        15, "B/cycle", MEASURED, f"{PAPER}: 15 GB/s at 1.0 GHz; {IGNITE}: 26 to 28 GB/s at 1.8 GHz"
    ),
    channel_bytes_per_cycle=Figure(
        3.9, "B/cycle", MEASURED, f"{IGNITE}: 6.9 to 7.0 GB/s at 1.8 GHz"
    ),
    stream_bytes_per_cycle=Figure(4, "B/cycle", MEASURED, f"{IGNITE}: 3.9998, memtile to core"),
    task_cycles=Figure(2800, "cycles", MEASURED, f"{EMULATOR}: 2,700 to 2,870, one after another"),
    convert_cycles=Figure(
        float(_C_ELEMENT),
        "cycles/element of C",
        ASSUMED,
        "what it costs a call to load and store a sum; nothing where the last call stores C itself",
    ),
    launch_s=Figure(150e-6, "s", MEASURED, f"{EMBEDDINGS}, Linux; {IGNITE}: 140 us, Windows"),
    queued_launch_s=Figure(36e-6, "s", MEASURED, f"{IGNITE}: 35.9 to 36.7 us in run lists of 64"),
    sync_s=Figure(
        3e-6, "s", DERIVED, f"{AMANUENSIS}: 1.6 ms for 512 syncs of 512 B, report of 2025-11-03"
    ),
    sync_bytes_per_s=Figure(
        64e9, "B/s", ASSUMED, "a sync flushes the range from the cache: 1 ms for 64 MiB on a server"
    ),
    overlay_switch_s=Figure(1.4e-3, "s", MEASURED, f"{WHISPER_XDNA}: 2.81 ms for two switches"),
    peak_int8=Figure(256, "MAC/cycle", SPECIFIED, f"device.yaml, by {IGNITE}"),
    peak_bf16=Figure(128, "MAC/cycle", SPECIFIED, f"device.yaml, by {IGNITE}"),
    int8=CoreRates(
        Figure(
            8 * 256 / 9,
            "MAC/cycle",
            DERIVED,
            f"{IGNITE}: 8 multiplies in 9 bundles of a compiled loop blocked 4x2, a cycle each; "
            "assumed of this project's. There a conflict of banks adds one cycle, so that a call "
            "of 64x64x64 makes 103.3 MAC/cycle, not 107.3",
        ),
        _C_ELEMENT,
        _CALL,
    ),
    bf16=CoreRates(
        Figure(
            64,
            "MAC/cycle",
            DERIVED,
            f"{IGNITE}: 16 multiplies in 32 bundles of a compiled loop blocked 4x4",
        ),
        Figure(
            float(_C_ELEMENT), "cycles/element of C", ASSUMED, "as for int8, whose C is as wide"
        ),
        Figure(float(_CALL), "cycles", ASSUMED, "as for int8"),
    ),
)

_C_ELEMENT_2 = Figure(
    float(_C_ELEMENT) / 2, "cycles/element of C", ASSUMED, "npu1's, twice as wide loads"
)

NPU2_FIGURES = Figures(
    clock_hz=Figure(1.8e9, "Hz", SPECIFIED, f"top step of the driver amdxdna for npu2; {PAPER}"),
    array_bytes_per_cycle=Figure(50 / 1.8, "B/cycle", DERIVED, f"{PAPER}: 50 GB/s at 1.8 GHz"),
    channel_bytes_per_cycle=NPU1_FIGURES.channel_bytes_per_cycle.assumed_elsewhere("npu1"),
    stream_bytes_per_cycle=NPU1_FIGURES.stream_bytes_per_cycle.assumed_elsewhere("npu1"),
    task_cycles=NPU1_FIGURES.task_cycles.assumed_elsewhere("npu1"),
    convert_cycles=_C_ELEMENT_2,
    launch_s=Figure(
        178e-6, "s", MEASURED, f"{EMBEDDINGS}: 177.9 us and 1 s for 39.3 GB, a fit, npu2"
    ),
    queued_launch_s=Figure(
        30e-6, "s", MEASURED, "github.com/Cyronius/ggml-xdna: 20 to 40 us in run lists"
    ),
    sync_s=NPU1_FIGURES.sync_s.assumed_elsewhere("npu1"),
    sync_bytes_per_s=NPU1_FIGURES.sync_bytes_per_s.assumed_elsewhere("npu1"),
    overlay_switch_s=Figure(2.67e-3, "s", MEASURED, "github.com/atassis/xdna-engine, npu2"),
    peak_int8=Figure(512, "MAC/cycle", SPECIFIED, f"mlir-aie's multiply of 8x8x8, by {IGNITE}"),
    peak_bf16=Figure(
        170, "MAC/cycle", DERIVED, f"{PAPER}: fitted to its kernels, which emulate bf16 by bfp16"
    ),
    int8=CoreRates(
        Figure(
            8 * 512 / 9,
            "MAC/cycle",
            ASSUMED,
            f"npu1's loop with twice the products each; whole calls of {PAPER}'s tuned kernels "
            "make 210 to 451",
        ),
        _C_ELEMENT_2,
        _CALL.assumed_elsewhere("npu1"),
    ),
    bf16=CoreRates(
        Figure(
            85,
            "MAC/cycle",
            ASSUMED,
            f"half of the fitted peak, as on npu1; whole calls of {PAPER}'s tuned kernels make "
            "124 to 158",
        ),
        _C_ELEMENT_2,
        _CALL.assumed_elsewhere("npu1"),
    ),
)

FIGURES = {"npu1": NPU1_FIGURES, "npu2": NPU2_FIGURES}
DEFAULT_CLOCKS = ", ".join(f"{of.clock_hz / 1e9:g} on {name}" for name, of in FIGURES.items())
