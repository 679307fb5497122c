"""`quantenv layers`: the quantizable layers of any network."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence

import torch
from rich.table import Table

from experiments.command_line import parse_options
from experiments.console import results
from experiments.tool_options import LayersOptions
from quantenv.errors import QuantenvError
from quantenv.layers import LayerSpec, describe, float_weights_note
from quantenv.plain import plain_network
from quantenv.quantize.graph import find_sites
from quantenv.quantize.tracing import trace
from quantenv.tasks.models import make_network

#: Values of one input, at most: a gibibyte.
MOST_VALUES = 1 << 28


def main(arguments: Sequence[str]) -> int:
    """Prints the layers.

    Args:
        arguments: The command line after ``layers``.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options.
        UnsupportedLayerError: If the network cannot be quantized.
    """
    options = parse_options(LayersOptions, "layers", arguments)
    network, layers = network_layers(options)
    if options.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(layer) for layer in layers], indent=1) + "\n")
        return 0
    table = Table("layer", "kind", "channels", "kernel", "stride", "groups", "input", "weights", "MACs")
    for layer in layers:
        table.add_row(
            layer.name,
            layer.kind,
            f"{layer.in_channels} > {layer.out_channels}",
            "x".join(map(str, layer.kernel_size)),
            "x".join(map(str, layer.stride)) if layer.kind != "linear" else "",
            str(layer.groups),
            "x".join(map(str, layer.input_shape)),
            f"{layer.params:,}",
            f"{layer.macs:,}",
        )
    totals = (f"{sum(layer.params for layer in layers):,}", f"{sum(layer.macs for layer in layers):,}")
    table.add_section()
    table.add_row(f"{len(layers)} layers", *[""] * 6, *totals)
    results().print(table, markup=False)
    if note := float_weights_note(network, {layer.name for layer in layers}):
        results().print(note, markup=False)
    return 0


def network_layers(options: LayersOptions) -> tuple[torch.nn.Module, tuple[LayerSpec, ...]]:
    """Makes the network in its plain form, runs it on one random input, and traces it."""
    if options.model is None:
        raise QuantenvError("Say which network: --model torchvision:resnet18, or --model your_module:make_network.")
    shape = _shape(options.input)
    example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    network = plain_network(make_network(options.model, arguments=options.model_arguments), example)
    layers = describe(network, example)
    find_sites(trace(network), example)
    return network, layers


def _shape(text: str) -> list[int]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and len(size) < 10 and int(size) > 0 for size in sizes):
        raise QuantenvError(f"--input is {text[:80]!r}; expected sizes such as 3,224,224.")
    shape = [int(size) for size in sizes]
    if math.prod(shape) > MOST_VALUES:
        raise QuantenvError(f"--input {text} has {math.prod(shape):,} values; expected {MOST_VALUES:,} at most.")
    return shape
