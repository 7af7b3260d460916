"""The emulated NPU on what the toolchain made of a design: locks, descriptors, flows, core code.

The object-FIFO level (:mod:`npu_matmul.emulator`) runs a design as its author means it; here its
lowered module is run as it is written, at the addresses that the allocator gave. Both are driven by
the same instruction streams and call the same models of C symbols.

Files, in reading order: ``module`` (a lowered module as plain data), ``reading`` (from MLIR to it),
``rules`` and ``holding`` (what is wrong with it before anything runs), ``order`` (what happened
before what), ``memory``, ``locks``, ``streams`` and ``dma`` (what there is), ``scalars``,
``control`` and ``core`` (what a core executes), ``machine`` (all of it together), ``schedules``
(who moves when), ``wiring`` (what leads where, for errors), ``timed`` (the machine with modelled
times, for timelines).

Assumed, as only hardware can settle it: descriptors and locks are not fetched ahead; a broadcast
moves when every receiver has room; units of a lock are taken in the order in which they were given;
an exact acquire takes away what it waited for; a C function touches the whole of each buffer it is
passed. Bank conflicts and packets are not modelled; time only for timelines.
"""
