"""How numbers are rounded: quantizers, calibration, the quantized network and its trainable twin."""

from quantenv.quantize.calibrate import activation_grids, weight_grids
from quantenv.quantize.calibrating import calibrate
from quantenv.quantize.calibration import Calibration
from quantenv.quantize.kmeans import codebooks
from quantenv.quantize.network import QuantizedNetwork
from quantenv.quantize.prefix import PrefixRunner
from quantenv.quantize.preparing import calibrate_task
from quantenv.quantize.quantizers import Codebook, Grid, LSQQuantizer, Quantizer, quantize
from quantenv.quantize.schemes import SCHEMES, STEPS, Scheme, parse_scheme
from quantenv.quantize.trainable import trainable_network
from quantenv.quantize.trained import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS

__all__ = [
    "ACTIVATION_QUANTIZERS",
    "SCHEMES",
    "STEPS",
    "WEIGHT_QUANTIZERS",
    "Calibration",
    "Codebook",
    "Grid",
    "LSQQuantizer",
    "PrefixRunner",
    "QuantizedNetwork",
    "Quantizer",
    "Scheme",
    "activation_grids",
    "calibrate",
    "calibrate_task",
    "codebooks",
    "parse_scheme",
    "quantize",
    "trainable_network",
    "weight_grids",
]
