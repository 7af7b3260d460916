"""Benchmarks of this machine: ``npu-matmul bench``. Nothing else in the package imports them.

``command`` is the command line's entry; ``session`` says what is measured and ``timing`` how;
``contenders`` holds the products, each library's in a process of its own (``worker``).
"""
