"""How numbers are rounded: formats, ranges, calibration, corrections, and the network simulated in float."""
