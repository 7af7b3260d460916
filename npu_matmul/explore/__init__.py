"""``npu-matmul explore``: which kernel would be fastest for given shapes, before anyone writes it.

``candidates`` are all kernels that the memory of a core has room for, ``rank`` models what each
would take, ``fronts`` keeps those that nothing beats, ``found`` checks these by the design rules.
"""
