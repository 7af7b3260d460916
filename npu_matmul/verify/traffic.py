"""What a launch moves, by shim channel, and launches made up for a product.

A :class:`Trial` is one launch to run: the stream's bytes decoded, its buffers, and which words of
them each channel reads or writes. That is read off the runtime sequence where there is one, so that
the words of the stream are judged by what the sequence says; else off the stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npu_matmul.assemble import assemble
from npu_matmul.emulator import POISON
from npu_matmul.emulator.patterns import order
from npu_matmul.emulator.shim import DeviceMemory
from npu_matmul.instructions import (
    Descriptor,
    PatchAddress,
    StartTask,
    Stream,
    WriteDescriptor,
    WriteWord,
    decode,
)
from npu_matmul.overlay import Overlay, Tile
from npu_matmul.sequence import Argument, Sequence, Step, Transfer, Wait, WriteParameter, linear
from npu_matmul.target import WORD_BYTES
from npu_matmul.verify.product import NoProduct, Product, operands

Moves = dict[str, list[tuple[int, NDArray[np.int64]]]]  # by channel: argument, words in order
SMALL_GRID = 4  # cores; with more of them, made-up launches are shorter


@dataclass(frozen=True)
class Trial:
    """One launch to run. ``steps`` has the steps in K that it sets, by core."""

    name: str
    stream: Stream
    arguments: tuple[Argument, ...]
    reads: Moves
    writes: Moves
    steps: Mapping[Tile, int]

    @property
    def inputs(self) -> set[int]:
        """Arguments that are only read."""
        written = {argument for moves in self.writes.values() for argument, _ in moves}
        return set(range(len(self.arguments))) - written


def trial_of_sequence(
    sequence: Sequence, overlay: Overlay, product: Product | None, name: str = ""
) -> Trial:
    """The launch that a runtime sequence is; its stream is assembled here."""
    reads: Moves = defaultdict(list)
    writes: Moves = defaultdict(list)
    steps: dict[Tile, int] = {}
    stream = decode(assemble(sequence, overlay))
    for step in sequence.steps:
        if isinstance(step, Transfer):
            sends = overlay.channels[step.fifo].direction == "MM2S"
            itemsize = sequence.arguments[step.argument].dtype.itemsize
            words = _words(step, itemsize)
            (reads if sends else writes)[step.fifo].append((step.argument, words))
        elif isinstance(step, WriteParameter) and product is not None and step.index == 0:
            tile = overlay.parameters[step.parameter].tile
            if product.parameters.get(tile) == step.parameter:
                steps[tile] = step.value
    return Trial(name or f"@{sequence.name}", stream, sequence.arguments, reads, writes, steps)


def trial_of_stream(name: str, stream: Stream, overlay: Overlay, product: Product | None) -> Trial:
    """The launch that a stream is, where there is no sequence to say what it should be."""
    reads: Moves = defaultdict(list)
    writes: Moves = defaultdict(list)
    types: dict[int, np.dtype[Any]] = {}
    names = {channel: channel_name for channel_name, channel in overlay.channels.items()}
    for channel, argument, words in _runs(stream):
        channel_name = names.get(channel, str(channel))
        (reads if channel.direction == "MM2S" else writes)[channel_name].append((argument, words))
        types.setdefault(argument, _dtype(channel_name, product))
    sizes = stream.argument_bytes()
    arguments = tuple(
        Argument(f"argument {n}", -(-sizes.get(n, 4) // t.itemsize), t)
        for n in range(max(sizes, default=-1) + 1)
        for t in [types.get(n, np.dtype(np.int32))]
    )
    steps: dict[Tile, int] = {}
    for operation in stream.operations:
        if isinstance(operation, WriteWord) and product is not None:
            parameter = overlay.parameters.get(product.parameters.get(operation.tile, ""))
            if parameter is not None and parameter.address == operation.offset:
                steps[operation.tile] = operation.value
    return Trial(name, stream, arguments, reads, writes, steps)


def made_up_trials(product: Product, overlay: Overlay) -> Iterator[Trial]:
    """Launches of several sizes whose number of steps in K changes from each to the next.

    The loop over K goes three times round in one of them: only then has its counter of two buffers
    been at all its values in there.
    """
    cores = len(product.cores) * len(product.cores[0])
    sizes = [(4, 1), (1, 2), (3, 1)]
    if cores <= SMALL_GRID:
        sizes = [(3, 2), (5, 1), (1, 3), (7, 1), (2, 2), (4, 1)]
    for steps, blocks in sizes:
        sequence = _product_sequence(product, steps, blocks)
        name = f"of {steps} steps in K and {blocks} tiles of C per core"
        yield trial_of_sequence(sequence, overlay, product, name)


def trial_memories(trial: Trial, random: np.random.Generator) -> list[DeviceMemory]:
    """The buffers of a launch: new operands in those that are only read; in the others where they
    are read, else poison."""
    memories = []
    for number, argument in enumerate(trial.arguments):
        size = -(-argument.elements * argument.dtype.itemsize // WORD_BYTES)
        known = np.full(size, number in trial.inputs)
        for moves in trial.reads.values():
            for _, words_read in (move for move in moves if move[0] == number):
                known[words_read] = True
        words = np.full(size * WORD_BYTES, POISON, np.uint8).view(np.uint32)
        if known.any():
            data = operands(argument.dtype, argument.elements, random).tobytes()
            given = np.frombuffer(data + bytes(-len(data) % WORD_BYTES), np.uint32)
            words[known] = given[known]
        memories.append(DeviceMemory(argument.name, words, known))
    return memories


def _product_sequence(product: Product, steps: int, blocks: int) -> Sequence:
    """A launch of so many blocks of C, each so many tiles of K long; operands are streamed once."""
    kernel = product.kernel
    tile = kernel.tile
    sizes = {
        "a": (product.a, steps * blocks * tile.m * tile.k, kernel.a_dtype),
        "b": (product.b, steps * blocks * tile.k * tile.n, kernel.b_dtype),
        "c": (product.c, blocks * len(product.cores) * tile.m * tile.n, kernel.c_dtype),
    }
    arguments = tuple(
        Argument(name, len(channels) * elements, dtype)
        for name, (channels, elements, dtype) in sizes.items()
    )
    written: list[Step] = [WriteParameter(name, 0, steps) for name in product.parameters.values()]
    for position, name in ((2, "c"), (0, "a"), (1, "b")):
        channels, elements, _ = sizes[name]
        written += [
            Transfer(
                channel,
                position,
                descriptor=position,
                token=name == "c",
                **linear(lane * elements, elements),
            )
            for lane, channel in enumerate(channels)
        ]
    written += [Wait(channel) for channel in product.c]
    return Sequence("made_up", arguments, tuple(written))


def _words(step: Transfer, itemsize: int) -> NDArray[np.int64]:
    """The words that a transfer moves, in order."""
    elements = order(tuple(zip(step.sizes, step.strides, strict=True)))
    assert elements is not None
    elements = elements + step.offset
    if itemsize <= WORD_BYTES:
        return elements[:: WORD_BYTES // itemsize] * itemsize // WORD_BYTES
    per_element = itemsize // WORD_BYTES
    return (elements[:, None] * per_element + np.arange(per_element)).reshape(-1)


def _runs(stream: Stream) -> Iterator[tuple[Any, int, NDArray[np.int64]]]:
    """Channel, argument and words of every run that a stream starts."""
    descriptors: dict[tuple[int, int], Descriptor] = {}
    patched: dict[tuple[int, int], PatchAddress] = {}
    done: dict[tuple[int, int], int] = {}
    for operation in stream.operations:
        if isinstance(operation, WriteDescriptor):
            key = operation.column, operation.number
            descriptors[key], done[key] = operation.descriptor, 0
        elif isinstance(operation, PatchAddress):
            patched[operation.column, operation.number] = operation
        elif isinstance(operation, StartTask):
            key = operation.channel.column, operation.number
            if key not in descriptors or key not in patched:
                continue  # refused when it is run
            descriptor, patch = descriptors[key], patched[key]
            for _ in range(operation.runs):
                step = done[key] % descriptor.iterations * descriptor.iteration_step
                done[key] += 1
                first = patch.offset_bytes // WORD_BYTES + step
                yield operation.channel, patch.argument, descriptor.offsets() + first


def _dtype(channel: str, product: Product | None) -> np.dtype[Any]:
    if product is None:
        return np.dtype(np.int32)
    kernel = product.kernel
    for names, dtype in (
        (product.a, kernel.a_dtype),
        (product.b, kernel.b_dtype),
        (product.c, kernel.c_dtype),
    ):
        if channel in names:
            return dtype
    return np.dtype(np.int32)


def expected_words(
    trial: Trial, product: Product, buffers: list[NDArray[Any]], steps: Mapping[Tile, int]
) -> dict[str, NDArray[Any]]:
    """The elements that each channel of C must bring; raises :class:`NoProduct`."""
    dtypes = dict.fromkeys(product.a, product.kernel.a_dtype)
    dtypes |= dict.fromkeys(product.b, product.kernel.b_dtype)
    sent = {}
    for name, dtype in dtypes.items():
        parts = [buffers[argument].view(np.uint32)[words] for argument, words in trial.reads[name]]
        if not parts:
            raise NoProduct(f"nothing is sent through @{name}")
        sent[name] = np.concatenate(parts).view(dtype)
    return product.expected(sent, steps)
