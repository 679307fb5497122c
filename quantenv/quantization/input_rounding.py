"""What rounding the network's input alone does: columns in units of their own share one grid, and small ones lose all.

Ranges of later tensors come out of training, and are alike because batch norms and initialisation see to it. Those of
inputs are the user's units.
"""

import torch
import torch.nn.functional as F

from quantenv.quantization.calibration import Calibration
from quantenv.quantization.verification import without_rounding

#: Rise of the mean cross-entropy, in nats, from which on it is said.
NOTABLE = 0.05
#: Calibration samples that it is looked for on, the first ones.
SAMPLES = 128


def note_of_rounded_inputs(calibration: Calibration, labels: torch.Tensor, batch: int = 64) -> str | None:
    """Says if rounding the input alone to 8 bits raises the loss on calibration samples notably.

    Args:
        calibration: The calibrated network.
        labels: Classes of its calibration inputs, (N,).
        batch: Samples run at once.

    Returns:
        Two sentences, or None if it does not.
    """
    sites = input_sites(calibration)
    inputs, labels = calibration.inputs[:SAMPLES], labels[:SAMPLES]
    before, after = (
        _evaluate(without_rounding(calibration, rounded), inputs, labels, batch) for rounded in ((), sites)
    )
    if after[0] <= before[0] + NOTABLE:
        return None
    columns = (
        calibration.inputs.abs().flatten(2).amax(2).amax(0)
        if calibration.inputs.dim() > 2
        else calibration.inputs.abs().amax(0)
    )
    small, large = float(columns[columns > 0].min()), float(columns.max())
    return (
        "Rounding the network's input alone to 8 bits, with one scale for all of it, raises the loss on calibration "
        f"samples from {before[0]:.3f} to {after[0]:.3f}, and takes the accuracy from {before[1]:.1%} to "
        f"{after[1]:.1%}. Its columns or channels reach from {small:.3g} to {large:.3g}: bring them to one unit, such "
        "as mean 0 and standard deviation 1, before they enter the network."
    )


def input_sites(calibration: Calibration) -> tuple[str, ...]:
    """Returns the nodes of the sites that hold values of the network's input: what moves them stores nothing."""
    inputs = {node.name for node in calibration.graph.graph.nodes if node.op == "placeholder"}
    return tuple(site.node for site in calibration.sites if site.node in inputs)


def _evaluate(network: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, batch: int) -> tuple[float, float]:
    """Returns mean cross-entropy and accuracy."""
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in inputs.split(batch)]).double()
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())
