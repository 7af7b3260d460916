"""How long a product would take on an NPU: a small model, calibrated on published measurements.

Every time here is modelled; only the host's stages are measured, on the host at hand. Files, in
reading order: ``figures`` (constants, each with its source), ``array`` (the time of one launch),
``product`` (of a whole product by a strategy), ``host`` (the stages around it), ``published`` (the
model against measurements of others), ``original`` (the tile-by-tile wrapper that the strategies
replace).
"""
