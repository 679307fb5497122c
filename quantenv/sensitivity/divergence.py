"""Sensitivity of each layer as the divergence of the outputs when it alone is coarse: what observations show."""

import functools

import numpy as np
import torch.nn.functional as F

from quantenv.core.allocation import MAX_BITS, Allocation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import calibrate_task
from quantenv.sensitivity.deviations import Deviation, all_logits, in_blocks
from quantenv.sensitivity.kinds import PARTS, Settings
from quantenv.sensitivity.network import identity_of

#: The name under which a prepared network holds what this module measures.
SHOWN = "shown in observations"
#: Bits given to the one layer under test: low enough that every layer's harm stands out from rounding noise.
PROBE_BITS = 3


@functools.lru_cache(maxsize=4)
def layer_sensitivity(evaluator: PTQEvaluator, images: int | None = Settings.images) -> np.ndarray:
    """Returns how much the outputs move when one layer's weights alone are coarse.

    The mean Kullback-Leibler divergence KL(p_8bit || p_layer) in nats on the search split, where p_8bit are the
    outputs with 8-bit weights and activations everywhere and p_layer those with `PROBE_BITS`-bit weights in one
    layer (the KL metric of ZeroQ, Cai et al. 2020, eq. 6), all as the evaluator computes them.

    Args:
        evaluator: Computes the outputs.
        images: Samples to use, the first ones; None is all. See
            `quantenv.sensitivity.kinds.shown_evaluations` for what it costs.

    Returns:
        Float64 array (L,), non-negative, in the order of the layers. The same object for the same evaluator.
    """
    prepared = calibrate_task(evaluator.task).prepared
    known = {} if prepared is None else prepared.about.sensitivities.get(identity_of(evaluator, Settings(images)), {})
    sensitivity = np.array(known[SHOWN]) if SHOWN in known else measured_sensitivity(evaluator, images)
    sensitivity.flags.writeable = False
    return sensitivity


def measured_sensitivity(evaluator: PTQEvaluator, images: int | None = Settings.images) -> np.ndarray:
    """Measures `layer_sensitivity` in any case, whatever is known of it."""
    inputs, layers = evaluator.task.splits["search"].inputs[:images], evaluator.layers
    (base,) = all_logits(evaluator, [Allocation.make(layers, MAX_BITS)], inputs).double()
    reference = F.log_softmax(base, dim=1)
    harms = []
    for block in in_blocks([Deviation((index,), PARTS[0], PROBE_BITS) for index in range(len(layers))]):
        for logits in all_logits(evaluator, [deviation.allocation(layers) for deviation in block], inputs):
            moved = F.log_softmax(logits.double(), dim=1)
            harms.append(float(F.kl_div(moved, reference, reduction="batchmean", log_target=True)))
    return np.maximum(np.array(harms), 0.0)
