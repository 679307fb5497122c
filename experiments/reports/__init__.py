"""`quantenv report`: runs and benchmarks as one HTML page that needs no network, and the same figures as PNGs.

`sources` reads folders into `searches`, `known` adds what their tasks tell (uniform allocations, the proxy's curve, the
true front), `verdicts` compares, `patterns` averages bits over kinds of layers, `charts` and `layer_charts` make
figures as data (`drawing`), which `interactive` and `pictures` draw with plotly and matplotlib, and `page` writes the
HTML.
"""
