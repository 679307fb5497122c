"""Sensitivity of each layer as the divergence of the outputs when only that layer is quantized."""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from quantenv.allocation import Allocation
from quantenv.quantize import QuantizedNetwork, calibrate_task
from quantenv.tasks import Task

#: Bits given to the one layer under test: low enough that every layer's harm stands out from rounding noise.
PROBE_BITS = 3


@functools.lru_cache(maxsize=4)
def layer_sensitivity(task: Task) -> np.ndarray:
    """Measures how much the outputs move when one layer's weights alone are coarse.

    The mean Kullback-Leibler divergence KL(p_8bit || p_layer) in nats on the search split, where p_8bit are the
    outputs with 8-bit weights and activations everywhere and p_layer those with `PROBE_BITS`-bit weights in one
    layer (the KL metric of ZeroQ, Cai et al. 2020, eq. 6).

    Args:
        task: The task.

    Returns:
        Float64 array (L,), non-negative, in the order of ``task.layers``. The same object for the same task.
    """
    network = QuantizedNetwork(calibrate_task(task))
    inputs = task.splits["search"].inputs
    base = Allocation.make(task.layers, 8)

    def log_probabilities(allocation: Allocation) -> torch.Tensor:
        network.select(allocation)
        return F.log_softmax(torch.cat([network(batch) for batch in inputs.split(512)]).double(), dim=1)

    reference = log_probabilities(base)
    harms = []
    for index in range(len(task.layers)):
        weight_bits = [PROBE_BITS if i == index else 8 for i in range(len(task.layers))]
        moved = log_probabilities(Allocation.make(task.layers, weight_bits))
        harms.append(float(F.kl_div(moved, reference, reduction="batchmean", log_target=True)))
    sensitivity = np.maximum(np.array(harms), 0.0)
    sensitivity.flags.writeable = False
    return sensitivity
