"""AIE designs as MLIR: the dialects (``aie``, ``aiex``) and a reader that says where an error is.

xDSL parses, holds, verifies and prints the IR; only the operations are defined here.
"""
