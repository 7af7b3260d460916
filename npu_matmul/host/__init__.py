"""Compiled loops of the host: vector intrinsics for numba, and what is built of them."""
