"""Benchmark: how far simulated quantization is from the integer network, layer by layer.

`make bench-integer` draws the figure of the lectures on HAWQ: the normalised difference, the norm of the difference
over the norm of what integers give, of each layer's stored outputs. The naive simulation rounds what layers read and
nothing else: biases and residual adds stay in float, as in quantizers that are put in front of convolutions. Ours is
`QuantizedNetwork`, which rounds what integer hardware stores and has biases on the accumulator's grid.
"""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from experiments.options.parsing import parse_options
from experiments.studies.bench_tasks import has_data, trained_resnet20
from experiments.studies.harness import write_results
from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.integer_layer import IntegerLayer
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_atomically
from quantenv.core.layers import LayerSpec
from quantenv.evaluation.preparing import calibrate_task
from quantenv.graph.sites import Site, fused_relu
from quantenv.quantization.calibrating import calibrate
from quantenv.quantization.calibration import Calibration
from quantenv.quantization.formats import Grid, quantize
from quantenv.quantization.simulated import rewire
from quantenv.quantization.storage import decode

NAME = "bench_integer"
NAIVE, OURS = "naive simulation", "our simulation"


@dataclass(frozen=True)
class BenchOptions:
    """Measures differences between simulated and integer networks."""

    networks: list[str] = field(default_factory=lambda: ["resnet20", "resnet50"])
    """Networks: resnet20, with its weights and images where the data are at hand, else trained for seconds; resnet50,
    torchvision's with random weights."""
    bits: list[int] = field(default_factory=lambda: [8, 4, 2])
    """Bits of all weights and activations."""
    images: int = 200
    """Images of ResNet-20."""
    side: int = 64
    """Pixels of ResNet-50's random images, 16 of them."""
    threads: int = 1
    """Threads of torch."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file, the table and the plot."""


@dataclass(frozen=True)
class Row:
    """A layer under a bit-width."""

    network: str
    """Its network."""
    bits: int
    """Bits of all weights and activations."""
    layer: str
    """Its name."""
    naive: float
    """Normalised difference of the naive simulation."""
    ours: float
    """Normalised difference of our simulation."""


@dataclass(frozen=True)
class Predictions:
    """How often a simulation predicts something else than the integer network."""

    network: str
    """Its network."""
    bits: int
    """Bits of all weights and activations."""
    images: int
    """Images."""
    naive: int
    """On how many images the naive simulation does."""
    ours: int
    """On how many images our simulation does."""


class NaiveLayer(nn.Module):
    """A layer that rounds its weights and what it reads, and nothing else."""

    def __init__(self, layer: nn.Module, weight: torch.Tensor, grid: Grid) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        self._layer, self._weight, self._grid = (layer,), weight, grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the layer on (B, C, H, W) or (B, F)."""
        (layer,), x = self._layer, quantize(x, self._grid)
        if isinstance(layer, nn.Linear):
            return F.linear(x, self._weight, layer.bias)
        return F.conv2d(x, self._weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class _AsItIs(nn.Module):
    """In place of a stored tensor: only the ReLU that its grid stands for."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self._low = low

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0) if self._low >= 0 else x


def naive_simulation(calibration: Calibration, bits: int) -> fx.GraphModule:
    """Returns the network with quantizers in front of layers only, at uniform bits of weights and activations."""

    def make_site(site: Site) -> nn.Module:
        return _AsItIs(calibration.site_grids[site.node][8].low)

    def make_layer(layer: LayerSpec, module: nn.Module) -> nn.Module:
        grid = calibration.site_grids[calibration.site_of(layer.name).node][bits]
        return NaiveLayer(module, calibration.rounded(layer.name, bits), grid)

    return rewire(calibration, make_site, make_layer)


def stored_outputs(module: fx.GraphModule, calibration: Calibration, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Runs a simulation and returns what its layers' outputs are stored as, by layer, and its own output."""
    places, found = layer_sites(calibration), dict[str, torch.Tensor]()
    handles = [
        module.get_submodule(f"site_{place}").register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output.clone())
        )
        for name, place in places.items()
    ]
    try:
        with torch.inference_mode():
            found["output"] = module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def integer_outputs(network: IntegerNetwork, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the same of the integer network."""
    found: dict[str, torch.Tensor] = {}

    def record(layer: IntegerLayer) -> Callable[..., None]:
        def call(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            if layer.target is not None:
                grid = layer.target.grid
                found[layer.name] = decode(network.storage.numbers(output, grid), grid)

        return call

    layers = [each for each in network.module.modules() if isinstance(each, IntegerLayer)]
    handles = [layer.register_forward_hook(record(layer)) for layer in layers]
    try:
        found["output"] = network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def layer_sites(calibration: Calibration) -> dict[str, int]:
    """Returns the place among the sites of the one that a layer's output is stored at, by layer that has one."""
    places = {site.node: place for place, site in enumerate(calibration.sites)}
    modules, found = dict(calibration.graph.named_modules()), {}
    names = {layer.name for layer in calibration.modules}
    for node in calibration.graph.graph.nodes:
        if node.op == "call_module" and str(node.target) in names:
            stored = fused_relu(node, modules) or node
            if stored.name in places:
                found[str(node.target)] = places[stored.name]
    return found


def difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Returns the norm of the difference over the norm of what integers give."""
    return float((found.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-30))


def measure(
    name: str, calibration: Calibration, inputs: torch.Tensor, bits: Sequence[int]
) -> tuple[list[Row], list[Predictions]]:
    """Compares both simulations with the integer network.

    Args:
        name: The network's name.
        calibration: The network.
        inputs: Images, (N, C, H, W).
        bits: Uniform bits of weights and activations.

    Returns:
        A row for each layer and bit-width, and how often predictions differ.
    """
    rows, predictions = [], []
    integers, ours = IntegerNetwork(calibration), QuantizedNetwork(calibration)
    for each in bits:
        allocation = Allocation.make(calibration.layers, each, each)
        integers.select(allocation)
        ours.select(allocation)
        exact = integer_outputs(integers, inputs)
        found = {
            NAIVE: stored_outputs(naive_simulation(calibration, each), calibration, inputs),
            OURS: stored_outputs(ours.module, calibration, inputs),
        }
        for layer in exact:
            naive, own = (difference(outputs[layer], exact[layer]) for outputs in found.values())
            rows.append(Row(name, each, layer, naive, own))
        wanted = exact["output"].argmax(1)
        differ = [int((outputs["output"].argmax(1) != wanted).sum()) for outputs in found.values()]
        predictions.append(Predictions(name, each, len(inputs), *differ))
    return rows, predictions


def networks(options: BenchOptions) -> dict[str, tuple[Calibration, torch.Tensor]]:
    """Makes the networks that are asked for.

    Raises:
        QuantenvError: If there is no such network.
    """
    made = {}
    for name in options.networks:
        if name == "resnet20":
            task = trained_resnet20(options.images)
            what = "ResNet-20" if has_data() else "ResNet-20 trained on digits"
            made[what] = calibrate_task(task), task.splits["search"].inputs
        elif name == "resnet50":
            from quantenv.tasks.networks.vision import torchvision

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = torchvision().models.resnet50(weights=None).eval()
                images = torch.randn(32, 3, options.side, options.side)
            made["ResNet-50, random weights"] = calibrate(network, images[:16]), images[16:]
        else:
            raise QuantenvError(f"--networks names {name!r}; expected resnet20 or resnet50.")
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: If a network is unknown.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    predictions: list[Predictions] = []
    for name, (calibration, inputs) in networks(options).items():
        of_layers, of_images = measure(name, calibration, inputs, options.bits)
        rows += of_layers
        predictions += of_images
    measured = {"rows": list(map(asdict, rows)), "predictions": list(map(asdict, predictions))}
    write_results(NAME, arguments, options, "", measured, to_markdown(rows, predictions))
    write_atomically(Path(options.output) / f"{NAME}.png", lambda file: file.write(plot(rows)))
    return 0


def to_markdown(rows: Sequence[Row], predictions: Sequence[Predictions]) -> str:
    """Returns the table: a row for each network and bit-width."""
    lines = [
        "# Simulated quantization against the integer network",
        "",
        "Normalised difference of layers' stored outputs, median (largest) over layers, and of the output; on how many "
        "images another class is predicted. The naive simulation rounds what layers read and nothing else.",
        "",
        "| network | bits | naive: layers | output | predictions | ours: layers | output | predictions |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in predictions:
        own = [row for row in rows if (row.network, row.bits) == (each.network, each.bits)]
        cells = []
        for kind, differ in (("naive", each.naive), ("ours", each.ours)):
            values = [getattr(row, kind) for row in own if row.layer != "output"]
            (output,) = (getattr(row, kind) for row in own if row.layer == "output")
            cells += [f"{np.median(values):.2%} ({max(values):.2%})", f"{output:.2%}", f"{differ} of {each.images:,}"]
        lines.append(f"| {each.network} | {each.bits} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"![Normalised difference by layer]({NAME}.png)"]) + "\n"


def plot(rows: Sequence[Row]) -> bytes:
    """Draws normalised differences by layer, a panel for each network, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.network for row in rows))
    widths = list(dict.fromkeys(row.bits for row in rows))
    figure = Figure(figsize=(9, 3.4 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        for color, bits in zip(("tab:blue", "tab:orange", "tab:red", "tab:green"), widths, strict=False):
            own = [row for row in rows if (row.network, row.bits) == (name, bits)]
            drawn: Mapping[str, list[float]] = {"--": [row.naive for row in own], "-": [row.ours for row in own]}
            for style, values in drawn.items():
                what = NAIVE if style == "--" else OURS
                shown = [max(value, 1e-8) for value in values]
                panel.plot(shown, style, color=color, marker=".", label=f"{bits} bits, {what}")
        panel.set_yscale("log")
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("layer, in execution order; the last one is the output")
        panel.set_ylabel("normalised difference")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
