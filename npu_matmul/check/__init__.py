"""``npu-matmul check``: designs against the rules of the toolchain and the hardware."""
