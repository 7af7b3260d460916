"""XRT's own binding code in front of the double: what pyxrt accepts and returns, from its source.

``build`` compiles ``pyxrt.cpp`` of a checkout of XRT; ``behind.cpp`` has the C++ classes that it
binds, each a handle of an object of the double. So argument types, enumerations, return values and
lifetimes are those of the genuine binding, and everything behind it is the double's. For
``pytest --xrt-source``; see the Makefile's ``test-pyxrt``.
"""
