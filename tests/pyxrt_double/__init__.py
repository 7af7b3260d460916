"""A strict double of XRT's Python binding, with the emulated NPU behind it.

``npu.Npu`` is the machine, its driver and everything that can be made to fail; ``binding`` has the
classes of ``pyxrt`` with their signatures, return values and failures, as XRT 2.20 to 2.26 have
them; ``xclbin`` is the container that stands for an overlay. What would end a real process, or go
wrong without a word, is written down in ``Npu.crashes``, which every test must leave empty.
"""
