"""``python -m npu_matmul``: the command line."""

from npu_matmul.cli import main

main()
