"""Bias correction and batch-norm re-estimation: putting back what rounding does to the statistics of layer outputs.

Both compare with what the float network does on the calibration inputs.
"""

from collections.abc import Callable, Collection

import torch
from torch import fx, nn

from quantenv.graph.ops import Geometry, geometry_of

#: Calibration inputs run at once.
BATCH = 128
#: Added to variances, as a share of the float network's: a channel that rounding silenced stays silent.
EPSILON = 1e-5


def output_moments(
    graph: fx.GraphModule, layers: Collection[str], inputs: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Runs the float network and measures what its layers put out.

    Args:
        graph: The folded network.
        layers: Names of its layers.
        inputs: Calibration inputs, (N, ...).

    Returns:
        Mean and variance of each layer's outputs by channel, float32 (O,), before any ReLU.
    """
    moments = {name: _Moments() for name in layers}

    def record(name: str, layer: nn.Module, _read: torch.Tensor, output: torch.Tensor) -> None:
        moments[name].add(layer, output)

    _watched(graph, layers, inputs, record)
    return {name: each.result() for name, each in moments.items()}


def mean_inputs(graph: fx.GraphModule, layers: Collection[str], inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Runs the float network and measures what its layers read.

    Args:
        graph: The folded network.
        layers: Names of its layers.
        inputs: Calibration inputs, (N, ...).

    Returns:
        Each layer's input averaged over samples, (1, C, H, W) or (1, ..., F).
    """
    sums: dict[str, torch.Tensor] = dict.fromkeys(layers, torch.zeros(()))

    def record(name: str, _layer: nn.Module, read: torch.Tensor, _output: torch.Tensor) -> None:
        sums[name] = sums[name] + read.sum(0, keepdim=True)

    _watched(graph, layers, inputs, record)
    return {name: total / len(inputs) for name, total in sums.items()}


def _watched(
    graph: fx.GraphModule,
    layers: Collection[str],
    inputs: torch.Tensor,
    record: Callable[[str, nn.Module, torch.Tensor, torch.Tensor], None],
) -> None:
    """Runs a network batch by batch and hands on what some of its layers read and put out."""

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def call(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            record(name, module, arguments[0], output)

        return graph.get_submodule(name).register_forward_hook(call)

    handles = [hook(name) for name in layers]
    try:
        with torch.no_grad():
            for batch in inputs.split(BATCH):
                graph(batch)
    finally:
        for handle in handles:
            handle.remove()


def bias_correction(layer: nn.Module, rounded: torch.Tensor, mean_input: torch.Tensor) -> torch.Tensor:
    """Returns what to add to a layer's bias for its rounded weights (Nagel et al. 2019, section 4.2).

    Rounding by an error e shifts the outputs' mean by ``E[e x] = e E[x]``, which is subtracted (eq. 17). E[x] is
    measured on the calibration inputs, and kept by position, so that zero padding is accounted for.

    Args:
        layer: The folded float layer.
        rounded: Its rounded weights.
        mean_input: Its input averaged over samples, (1, ...).

    Returns:
        The correction, (O,).
    """
    geometry, weight = geometry_of(layer), layer.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        shift = geometry.run(mean_input, weight - rounded)
        if not geometry.op.dims:
            return shift.flatten(0, -2).mean(0)
        return shift.mean((0, *range(2, shift.dim())))


def reestimate(
    module: fx.GraphModule,
    layers: Collection[str],
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]],
    inputs: torch.Tensor,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Estimates batch-norm statistics again, in a quantized network whose batch norms are folded.

    A batch norm gives every channel of its outputs a fixed mean and variance. Folded, it does so for the float
    weights only; under quantization, its statistics estimated again amount to an affine map by channel that restores
    the float network's mean and variance. As when a batch norm is in training mode, each layer sees what the layers
    before it put out under the batch's own statistics; the averages over batches are the new ones.

    Args:
        module: The quantized network under an allocation.
        layers: Names of the layers that batch norms were folded into.
        moments: Means and variances in the float network, by layer name.
        inputs: Calibration inputs, (N, ...).

    Returns:
        For each layer a gain and a shift, (O,): its output is to become ``gain * output + shift``.
    """
    estimator = _Estimator(module, layers, moments)
    with torch.no_grad():
        for batch in inputs.split(BATCH):
            estimator.run(batch)
    return {name: _affine(moments[name], seen.result()) for name, seen in estimator.seen.items()}


def rescaled(
    weight: torch.Tensor, bias: torch.Tensor | None, gain: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns weights and bias whose outputs are ``gain * output + shift``."""
    return weight * gain.view((-1,) + (1,) * (weight.dim() - 1)), shift if bias is None else bias * gain + shift


class _Moments:
    """Mean and variance by channel, summed in double precision over batches."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, layer: nn.Module, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a batch (B, O, ...), or (B, ..., O) of a linear layer; returns its own mean and variance."""
        rows = _geometry(layer).rows(output).flatten(0, -2).double()
        total, squares = rows.sum(0), rows.square().sum(0)
        self.count, self.sum, self.squares = self.count + len(rows), self.sum + total, self.squares + squares
        return _mean_and_variance(len(rows), total, squares)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        return _mean_and_variance(self.count, self.sum, self.squares)


def _geometry(layer: nn.Module) -> Geometry:
    """Returns the geometry of a layer of the float network, or of one that stands for it."""
    own = getattr(layer, "geometry", None)
    return own if isinstance(own, Geometry) else geometry_of(layer)


def _mean_and_variance(count: int, total: torch.Tensor, squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).float()


def _affine(
    wanted: tuple[torch.Tensor, torch.Tensor], seen: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gain and shift, (O,), that turn one mean and variance into another."""
    slack = EPSILON * wanted[1]
    total = seen[1] + slack
    gain = torch.where(total > 0, ((wanted[1] + slack) / total.where(total > 0, 1.0)).sqrt(), 1.0)
    return gain, wanted[0] - gain * seen[0]


class _Estimator(fx.Interpreter):
    """Runs a quantized network, normalising the outputs of some layers by their own batch's statistics."""

    def __init__(
        self, module: fx.GraphModule, layers: Collection[str], moments: dict[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        super().__init__(module)
        self.moments = moments
        self.seen = {name: _Moments() for name in layers}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        name = str(n.target)
        if n.op != "call_module" or name not in self.seen:
            return value
        assert isinstance(value, torch.Tensor)
        layer = self.module.get_submodule(name)
        own = self.seen[name].add(layer, value)
        gain, shift = _affine(self.moments[name], own)
        shape = _geometry(layer).shape
        return value * gain.view(shape) + shift.view(shape)
