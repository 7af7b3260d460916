"""The emulated NPU: runs an overlay's design and the bytes of an instruction stream on arrays.

It knows object FIFOs, cores and shim DMAs, not products: only the models of the C symbols compute.
Files, in reading order: ``actors`` (what runs at the same time), ``rings`` (buffers and who may
touch them), ``core`` (what a core executes), ``shim`` (descriptors, start queues, tokens), ``host``
(the operations of a stream), ``machine`` (all of it under one scheduler), ``symbols`` (which model
is which symbol's), ``mac_i8`` and ``mac_bf16`` (what they compute). What the toolchain made of the
FIFOs is run by :mod:`npu_matmul.lowered`.
"""


class EmulationError(RuntimeError):
    """The design or the stream did something that the NPU would punish; the message names who and
    where."""


POISON = 0xA5  # every byte of memory that nobody has written yet
