"""The host's side of a launch: the operations of an instruction stream, one after the other.

Both levels of the emulated NPU are driven by this: descriptors, patched addresses, start queues and
tokens are the same whether what lies behind a shim channel is object FIFOs or lowered DMA programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from npu_matmul.emulator import EmulationError
from npu_matmul.emulator.actors import Condition
from npu_matmul.emulator.shim import DescriptorState, DeviceMemory, ShimChannel, Task
from npu_matmul.instructions import (
    EnableTokens,
    PatchAddress,
    StartTask,
    Stream,
    WaitToken,
    WriteDescriptor,
    WriteWord,
)
from npu_matmul.overlay import Channel
from npu_matmul.stream_rules import check_stream
from npu_matmul.target import Target


class Host:
    """Executes streams on the shim channels of one partition."""

    def __init__(
        self,
        partition: tuple[Target, int],
        channels: Mapping[Channel, ShimChannel],
        write_word: Callable[[WriteWord], None],
        source: str = "object FIFO",
    ) -> None:
        """``source`` is what connects channels in the design, for errors."""
        self._partition = partition
        self._source = source
        self._channels = channels
        self._write_word = write_word
        self._descriptors: dict[tuple[int, int], DescriptorState] = {}

    def check(self, stream: Stream) -> None:
        """Raise for a stream of another partition, or one that breaks a rule of streams."""
        target, columns = self._partition
        if (stream.target, stream.columns) != self._partition:
            raise EmulationError(
                f"the stream is for {stream.columns} columns of {stream.target.name}, "
                f"the overlay for {columns} of {target.name}"
            )
        check_stream(stream)

    def run(self, stream: Stream, arguments: Sequence[DeviceMemory]) -> Iterator[Condition]:
        """The operations of a stream that was checked, on these buffers."""
        for operation in stream.operations:
            match operation:
                case WriteWord():
                    self._write_word(operation)
                case WriteDescriptor():
                    key = operation.column, operation.number
                    self._descriptors[key] = DescriptorState(operation.descriptor)
                case PatchAddress():
                    self._patch(operation, arguments)
                case StartTask():
                    state = self._descriptors[operation.channel.column, operation.number]
                    task = Task(state, operation.runs, operation.token)
                    self._channel(operation.channel).start(task)
                case WaitToken():
                    channel = self._channel(operation.channel)
                    while not channel.tokens:
                        yield channel.token_sent
                    channel.take_token()
                case EnableTokens():
                    pass  # check_stream holds that a task asking for a token comes after this

    def _patch(self, operation: PatchAddress, arguments: Sequence[DeviceMemory]) -> None:
        if operation.argument >= len(arguments):
            raise EmulationError(
                f"the stream uses buffer {operation.argument}; the launch has {len(arguments)}"
            )
        state = self._descriptors[operation.column, operation.number]
        state.memory = arguments[operation.argument]
        state.offset_words = operation.offset_bytes // 4

    def _channel(self, channel: Channel) -> ShimChannel:
        if channel not in self._channels:
            raise EmulationError(
                f"the stream uses {channel}, which no {self._source} of the design is connected to"
            )
        return self._channels[channel]
