"""How numbers are rounded: quantizers, calibration, the quantized network and its trainable twin."""

from quantenv.quantize.calibrate import activation_grids, weight_grids
from quantenv.quantize.network import SCHEMES, Calibration, QuantizedNetwork, calibrate, calibrate_task
from quantenv.quantize.prefix import PrefixRunner
from quantenv.quantize.quantizers import Grid, LSQQuantizer, Quantizer, quantize
from quantenv.quantize.trainable import trainable_network

__all__ = [
    "SCHEMES",
    "Calibration",
    "Grid",
    "LSQQuantizer",
    "PrefixRunner",
    "QuantizedNetwork",
    "Quantizer",
    "activation_grids",
    "calibrate",
    "calibrate_task",
    "quantize",
    "trainable_network",
    "weight_grids",
]
