"""`quantenv layers`: the quantizable layers of any network."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence

import torch
from rich.table import Table

from experiments.options.console import results
from experiments.options.parsing import parse_options
from experiments.options.tools import LayersOptions
from quantenv.backends.integer import float_operators
from quantenv.core.activations import Activations
from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.graph.activations import find_activations
from quantenv.graph.layers import describe, float_weights_note
from quantenv.graph.plain_network import plain_network
from quantenv.hardware import format_quantity
from quantenv.hardware.memory import peak_memory
from quantenv.quantization.calibrating import unmeasured
from quantenv.tasks.networks.models import make_network

#: Values of one input, at most: a gibibyte.
MOST_VALUES = 1 << 28
#: Operators in float that are named.
SHOWN = 6


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
    network, layers, activations, in_float = network_layers(options)
    if options.json:
        content = {
            "layers": [dataclasses.asdict(layer) for layer in layers],
            **dataclasses.asdict(activations),
            "float_operators": list(in_float),
        }
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
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
    for product in activations.products:
        table.add_row(product.name, "product", *[""] * 6, f"{product.macs:,}")
    macs = sum(layer.macs for layer in layers) + activations.macs
    table.add_section()
    counted = f"{len(layers)} layers" + (f", {len(activations.products)} products" if activations.products else "")
    table.add_row(counted, *[""] * 6, f"{sum(layer.params for layer in layers):,}", f"{macs:,}")
    results().print(table, markup=False)
    results().print(stored_note(layers, activations), markup=False, highlight=False)
    results().print(arithmetic_note(in_float), markup=False, highlight=False)
    if note := float_weights_note(network, {layer.name for layer in layers}):
        results().print(note, markup=False)
    return 0


def stored_note(layers: Sequence[LayerSpec], activations: Activations) -> str:
    """Says what a network stores between its layers."""
    peak = format_quantity("memory", peak_memory(layers, activations).reference)
    count = len(activations.tensors)
    return (
        f"{count} {'tensors are' if count > 1 else 'tensor is'} stored, {activations.share_at_8_bits:.0%} of their "
        f"elements at 8 bits whatever is allocated. Peak activation memory at 8 bits: {peak}."
    )


def arithmetic_note(in_float: Sequence[str]) -> str:
    """Says what of a quantized network is integer arithmetic.

    Args:
        in_float: What is not, by name.
    """
    if not in_float:
        return "Quantized, all of it is integer arithmetic: evaluations are the same on every machine."
    shown = ", ".join(in_float[:SHOWN]) + (f" and {len(in_float) - SHOWN} more" if len(in_float) > SHOWN else "")
    return f"Quantized, these stay in float, so that last digits depend on the machine: {shown}."


def network_layers(
    options: LayersOptions,
) -> tuple[torch.nn.Module, tuple[LayerSpec, ...], Activations, tuple[str, ...]]:
    """Makes the network in its plain form, runs it on one random input, and traces it.

    Returns:
        The network, its layers, what it stores and multiplies, and what of it stays in float when it is quantized.
    """
    if options.model is None:
        raise QuantenvError("Say which network: --model torchvision:resnet18, or --model your_module:make_network.")
    shape = _shape(options.input)
    example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    network = plain_network(make_network(options.model, arguments=options.model_arguments), example)
    in_float = float_operators(unmeasured(network, example))
    return network, describe(network, example), find_activations(network, example), in_float


def _shape(text: str) -> list[int]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and len(size) < 10 and int(size) > 0 for size in sizes):
        raise QuantenvError(f"--input is {text[:80]!r}; expected sizes such as 3,224,224.")
    shape = [int(size) for size in sizes]
    if math.prod(shape) > MOST_VALUES:
        raise QuantenvError(f"--input {text} has {math.prod(shape):,} values; expected {MOST_VALUES:,} at most.")
    return shape
