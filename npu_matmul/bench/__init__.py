"""Benchmarks of this machine: ``npu-matmul bench``. Only the command line imports them.

``command`` is the command line's entry; ``session`` says what is measured and ``timing`` how;
``contenders`` holds the products, each library's in a process of its own (``worker``).
"""
