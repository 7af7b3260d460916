"""``npu-matmul plan``: what products would take on an NPU, before there is one."""
