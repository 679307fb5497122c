"""How the loss curves where quantization perturbs it: Fisher information and Hessian traces."""

import numpy as np
import torch

from quantenv.core.files import content_hash
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.calibration import Calibration
from quantenv.quantization.formats import quantize
from quantenv.sensitivity.float_layers import FloatLayers
from quantenv.sensitivity.hutchinson import TraceEstimate, estimate_trace, probe_trace
from quantenv.sensitivity.kinds import PARTS, Settings
from quantenv.tasks import Task

BITS = range(1, 9)
#: Samples that share a probe. Fewer need fewer probes, as each batch draws its own, and more calls.
BATCH = 32
#: Forward passes that a gradient costs, and a Hessian-vector product, which is the gradient of a gradient: by the cheap
#: gradient principle (Griewank & Walther 2008, "Evaluating derivatives") each differentiation takes about three times
#: the work. Measured on ResNet-20, convolutions on a CPU: 4 and 13.
GRADIENT_COST, PRODUCT_COST = 3, 9


class Curvature:
    """Measures on the folded float network, with the first samples of the search split.

    Args:
        task: The task.
        settings: Samples, precision and seed.
    """

    def __init__(self, task: Task, settings: Settings) -> None:
        self._calibration = calibrate_task(task)
        self._float = FloatLayers(self._calibration)
        self._settings = settings
        split = task.splits["search"]
        self._inputs, self._labels = split.inputs[: settings.gradient_images], split.labels[: settings.gradient_images]
        self._noise = weight_noise(self._calibration, self._float)
        self._rows = [
            (module, channels)
            for module, layer in enumerate(self._calibration.modules)
            for channels in self._calibration.channels[layer.name] or (slice(None),)
        ]

    def perturbations(self) -> dict[str, list[list[float]]]:
        """Measures how far quantization moves weights and inputs.

        Returns:
            The mean squared perturbation of a layer's or channel group's weights, and of its inputs on the samples, at
            1-8 bits: for ``weights`` and ``activations`` a list (L, 8).
        """
        inputs = np.zeros((len(self._noise), len(BITS)))
        for batch in self._inputs.split(BATCH):
            for layer, values in enumerate(self._float.inputs(batch)):
                noise = self._input_noise(layer, values)
                inputs[layer] += [float(moved.double().square().sum()) / values[0].numel() for moved in noise]
        weights = [
            [float(moved[channels].double().square().mean()) for moved in self._noise[module]]
            for module, channels in self._rows
        ]
        return {"weights": weights, "activations": self._of_rows(inputs / len(self._inputs))}

    def fisher(self) -> dict[str, list[list[float]]]:
        """Weights squared perturbations by the diagonal of the empirical Fisher information.

        ``mean over samples of sum_j (g_j d_j)**2`` with a sample's gradient g of the cross-entropy of its label, and
        d what quantization changes: half of it is what the loss rises by if the Fisher information stands for the
        Hessian and its diagonal for all of it (as in Fisher pruning, Theis et al. 2018, "Faster gaze prediction with
        dense networks and Fisher pruning").

        Returns:
            For ``weights`` and ``activations`` a list (L, 8) = [layer, bits - 1].
        """
        every = tuple(range(len(self._noise)))
        squares = [noise.new_zeros(noise.shape[1:], dtype=torch.double) for noise in self._noise]
        activations = np.zeros((len(every), len(BITS)))
        for sample, label in zip(self._inputs.split(1), self._labels.split(1), strict=True):
            values = list(self._float.inputs(sample))
            loss, variables = self._float.loss(sample, label, every, every)
            gradients = torch.autograd.grad(loss, variables)
            for layer in every:
                squares[layer] += gradients[layer].double().square()
                moved = self._input_noise(layer, values[layer]) * gradients[len(every) + layer]
                activations[layer] += moved.double().square().flatten(1).sum(1).numpy()
        count = len(self._inputs)
        weights = [
            [
                float((squares[module][channels] * moved[channels].double().square()).sum()) / count
                for moved in self._noise[module]
            ]
            for module, channels in self._rows
        ]
        return {"weights": weights, "activations": self._of_rows(activations / count)}

    def trace(self, layer: int, part: str) -> TraceEstimate:
        """Estimates the trace of the Hessian of the mean loss in a layer's weights, or of a sample's loss in its input.

        One sample of the estimate is a pass over the images with a probe of its own for every batch, which takes
        fewer passes than one probe for all of them. Probing one layer at a time takes far fewer than all together:
        the couplings between layers would be noise. Of an input it is the mean over images of the trace in this
        image's activations.

        Args:
            layer: Index of the layer or channel group; of a group's activations, which are its layer's, the layer's.
            part: ``weights`` or ``activations``.
        """
        module, channels = self._rows[layer]
        of_weights = part == PARTS[0]
        chosen = ((module,), ()) if of_weights else ((), (module,))
        rows = channels if of_weights else slice(None)

        def sample(number: int) -> float:
            parts = [str(item) for item in (self._settings.seed, layer, part, number)]
            generator = torch.Generator().manual_seed(int(content_hash(parts), 16) >> 1)
            total = 0.0
            for inputs, labels in zip(self._inputs.split(BATCH), self._labels.split(BATCH), strict=True):
                loss, (variable,) = self._float.loss(inputs, labels, *chosen)
                total += probe_trace(loss, variable, generator, rows)
            return total / len(self._inputs)

        return estimate_trace(sample, self._settings.relative_error, self._settings.probes)

    def _input_noise(self, layer: int, values: torch.Tensor) -> torch.Tensor:
        """Returns what quantization changes in a layer's input, (8, B, ...) = [bits - 1, ...]."""
        grids = self._calibration.site_grids[self._calibration.site_of(self._calibration.modules[layer].name).node]
        return torch.stack([quantize(values, grids[bits]) - values for bits in BITS])

    def _of_rows(self, values: np.ndarray) -> list[list[float]]:
        """Repeats what whole layers have for each of their channel groups."""
        return [values[module].tolist() for module, _ in self._rows]


def weight_noise(calibration: Calibration, layers: FloatLayers) -> list[torch.Tensor]:
    """Returns what quantization changes in each whole layer's weights, (8, *weight.shape) = [bits - 1, ...]."""
    with torch.no_grad():
        return [
            torch.stack([calibration.rounded(layer.name, bits) - weight for bits in BITS])
            for layer, weight in zip(calibration.modules, layers.weights, strict=True)
        ]
