"""Networks as people write them, traced into the graph that is described and quantized."""
