"""Is a design, or what the toolchain made of it, right? Run on the emulated NPU and compared.

Files, in reading order: ``product`` (which product a module computes, and what C must be),
``traffic`` (what a launch moves, and launches made up for a product), ``subject`` (a module with
all that running it needs), ``run`` (the verdict), ``report`` and ``command`` (how it is shown),
``timeline`` (one launch, drawn).
"""
