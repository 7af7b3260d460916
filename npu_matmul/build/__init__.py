"""Building overlays with the standard toolchain, and finding again what was built.

``plan`` says which commands, ``toolchain`` where the tools are, ``run`` executes, ``cache`` keeps
the products, ``identity`` says what an overlay was made from. A device needs only the last two:
nothing is ever built inside a product.
"""
