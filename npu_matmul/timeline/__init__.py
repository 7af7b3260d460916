"""Timelines: where a process's time goes, and what the emulated array does in which order.

Whoever does something tells the *listener*, which is None unless a trace is being recorded. There
are two clocks, and nothing of one is ever written with the other's:

- The host's is measured. ``with listening.span("sync to device", bytes=512): ...`` tells of a block
  of work of this thread; ``listening.measured(name, start_s, end_s)`` of one whose time was taken
  anyway. Both cost an attribute's look-up when nobody listens.
- An emulated array's is modelled. A machine has an :class:`~.strands.Array` with a strand for each
  actor: ``strand.wait(until)`` goes on no sooner than another handed something over,
  ``strand.work(name, cycles)`` is what the actor does itself. ``array.begin()`` and ``array.end()``
  stand around a launch; ``listener.place(launch)`` puts it after the one before and numbers it.
  Waits must follow what the machine's order rests on (elements, locks, words, tokens): then times
  keep that order whatever schedule the machine ran under. :mod:`npu_matmul.emulator.timed` does
  this for object FIFOs; a machine that is not being listened to need not have strands.

Files, in reading order: ``listening`` (who hears), ``strands`` (modelled time), ``recording`` (what
was heard, compactly), ``processes`` (what others heard), ``trace`` (:func:`~.trace.trace`),
``trace_events`` and ``page`` (files), ``option`` (of commands).
"""
