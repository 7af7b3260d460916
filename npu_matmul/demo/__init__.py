"""``npu-matmul demo``: what the package does, shown on a recording and checked value by value.

``products`` has the first part, :mod:`npu_matmul.whisper.demo` the second.
"""
