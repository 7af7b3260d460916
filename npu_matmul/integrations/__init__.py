"""Other libraries' modules on ``npu_matmul``; each is imported on use only."""
