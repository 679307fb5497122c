"""The walk over a network: one `LayerSpec` for each quantizable layer, found by running the network once."""

import threading
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from quantenv.core.errors import UnsupportedLayerError
from quantenv.core.layers import Kind, LayerSpec
from quantenv.graph.multiplications import Multiplications
from quantenv.graph.ops import BATCH_NORMS, MODULES, by_dimension, macs, op_of
from quantenv.graph.plain_network import plain_network

#: Parameters that stay in float which are named, the largest ones.
MOST_NAMED = 4


def describe(network: nn.Module, example: torch.Tensor) -> tuple[LayerSpec, ...]:
    """Runs a network once and describes its quantizable layers in execution order.

    Args:
        network: Any module that multiplies by weights as Conv2d, Linear and attention layers do; norms and PReLU may
            lie between them, and parameters of modules of your own that are added or scale. It is described in its
            plain form (see `quantenv.graph`): attention by its projections, weights that functions multiply by as
            layers. Its mode is restored.
        example: A batch of inputs, shape (B, ...), on the network's device. The first one is described: with several,
            what a layer does for one could not be told from what it does for the batch where batches come second.

    Returns:
        One LayerSpec for each layer of `quantenv.graph.ops` that ran, in execution order.

    Raises:
        UnsupportedLayerError: If weights are multiplied by where quantenv cannot see them (the module is named), if the
            network does not run on the example, if no quantizable layer ran or one ran several times, if the output is
            no tensor, or if a parameter holds NaN or infinity.
    """
    return describe_plain(plain_network(network, example), example)


def describe_plain(network: nn.Module, example: torch.Tensor) -> tuple[LayerSpec, ...]:
    """Describes a network as `describe` does, if it is in its plain form already."""
    example = example[:1]
    _check_modules(network)
    calls: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    thread = threading.get_ident()
    watch = Multiplications(network)
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, MODULES):

            def record(
                _module: nn.Module,
                args: tuple[torch.Tensor, ...],
                keywords: dict[str, torch.Tensor],
                output: torch.Tensor,
                name: str = name,
            ) -> None:
                if threading.get_ident() != thread:
                    return  # another one runs the network meanwhile
                (read,) = (*args, *keywords.values())
                calls.setdefault(name, []).append((_per_sample(read.shape), _per_sample(output.shape)))

            hooks += [module.register_forward_hook(record, with_kwargs=True), *watch.hooks(module)]
    training = network.training
    try:
        network.eval()
        with torch.no_grad(), watch:
            output = _run(network, example)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    if not isinstance(output, torch.Tensor):
        raise UnsupportedLayerError(
            f"{type(network).__name__} puts out a {type(output).__name__}; expected one tensor of logits. "
            "Wrap it in a module that returns the logits."
        )
    if not calls:
        raise UnsupportedLayerError(
            f"{type(network).__name__} ran no layer that can be quantized, such as a Conv2d or Linear, so there is "
            "nothing to quantize."
        )
    modules = dict(network.named_modules())
    for name, shapes in calls.items():
        check_used_once(name, len(shapes))
    return tuple(_spec(name, modules[name], *shapes[0]) for name, shapes in calls.items())


def check_used_once(name: str, calls: int) -> None:
    """Refuses a layer that runs several times: its input would have one range for all of them.

    Raises:
        UnsupportedLayerError: If it does.
    """
    if calls > 1:
        raise UnsupportedLayerError(
            f"Layer {name!r} runs {calls} times in one forward pass, but has one range for its input. "
            "Give each use a layer of its own."
        )


def float_weights(network: nn.Module, layers: Collection[str]) -> dict[str, int]:
    """Counts the parameters that no decision covers, so that they stay in float whatever the allocation.

    Args:
        network: A network in its plain form, such as a task's.
        layers: Names of its quantizable layers.

    Returns:
        Elements by name of the parameter, those of quantizable layers and of batch norms, which are folded, left out.
    """
    return {
        f"{name}.{key}" if name else key: value.numel()
        for name, module in network.named_modules()
        for key, value in module.named_parameters(recurse=False)
        if name not in layers and not isinstance(module, BATCH_NORMS)
    }


def float_weights_note(network: nn.Module, layers: Collection[str]) -> str | None:
    """Says how many parameters stay in float and which; see `float_weights`.

    Returns:
        A sentence, or None if there are none.
    """
    found = float_weights(network, layers)
    if not found:
        return None
    largest = sorted(found, key=lambda name: -found[name])[:MOST_NAMED]
    others = f" and {len(found) - len(largest)} more" if len(found) > len(largest) else ""
    total = sum(value.numel() for value in network.parameters())
    return (
        f"{sum(found.values()):,} weights of {total:,} stay in float, and no decision or cost covers them: "
        f"{', '.join(f'{name} ({found[name]:,})' for name in largest)}{others}."
    )


def _run(network: nn.Module, example: torch.Tensor) -> object:
    try:
        return network(example)
    except UnsupportedLayerError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise UnsupportedLayerError(
            f"{type(network).__name__} does not run on an input of shape {','.join(map(str, example.shape[1:]))}: "
            f"{(str(error).splitlines() or [''])[0]}. It is called with a batch of inputs and nothing else."
        ) from error


def _per_sample(shape: torch.Size) -> tuple[int, ...]:
    """Takes the batch, of one, out of a shape, unless windows of the image, say, lie in the first dimension."""
    return tuple(shape[1:]) if shape[0] == 1 else tuple(shape)


def _check_modules(network: nn.Module) -> None:
    # Norms and PReLU stay in float and are not quantizable layers themselves.
    norms = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.RMSNorm)
    known = (*MODULES, *norms, nn.PReLU)
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    for name, module in network.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        where = f"Layer {name or '(the network itself)'!r}"
        # What torch calls its own is a leaf of the trace; of your own modules every step is seen.
        torchs = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Module
        if torchs and parameters and not isinstance(module, known + containers):
            kind = type(module).__name__
            raise UnsupportedLayerError(
                f"{where} is {'an' if kind[0] in 'AEIO' else 'a'} {kind} with parameters of its own; quantenv handles "
                f"Linear, convolutions, attention and norms. Replace it, or express it with those layers."
                f"{_tied_note(network, name, parameters)}"
            )
        if torchs and any(module.children()) and not isinstance(module, containers + known):
            raise UnsupportedLayerError(
                f"{where} is a {type(module).__name__}, which hides its layers from the trace. Express it with "
                "nn.MultiheadAttention, nn.Linear and nn.LayerNorm in a module of your own."
            )
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            raise UnsupportedLayerError(
                f"{where} is a {type(module).__name__} without running statistics (track_running_stats=False): what it "
                "makes of a sample depends on the others in its batch. Train it with running statistics, or use "
                "nn.GroupNorm."
            )
        for key, value in parameters.items():
            if not torch.isfinite(value).all():
                raise UnsupportedLayerError(
                    f"{where}: its {key} holds NaN or infinity, so the pretrained weights are unusable. "
                    "Load a sound checkpoint."
                )


def _spec(name: str, module: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> LayerSpec:
    op = op_of(module)
    layer: Any = module
    if op.dims:
        depthwise = not op.transposed and layer.groups == layer.in_channels and layer.groups > 1
        channels, kernel_size, groups = (layer.in_channels, layer.out_channels), layer.kernel_size, layer.groups
        kind: Kind = "depthwise" if depthwise else "transposed" if op.transposed else "conv"
        stride, bias_params = by_dimension(layer.stride, op.dims), layer.out_channels
    else:
        channels, kernel_size, groups = (layer.in_features, layer.out_features), (1, 1), 1
        kind, stride, bias_params = "linear", (0, 0), layer.out_features if layer.bias is not None else 0
    return LayerSpec(
        name=name,
        kind=kind,
        in_channels=channels[0],
        out_channels=channels[1],
        kernel_size=tuple(kernel_size),
        stride=stride,
        groups=groups,
        input_shape=input_shape,
        output_shape=output_shape,
        params=layer.weight.numel(),
        bias_params=bias_params,
        macs=macs(module, input_shape, output_shape),
    )


def _tied_note(network: nn.Module, name: str, parameters: Mapping[str, nn.Parameter]) -> str:
    """Says which other layers a layer's parameters are tied to, as a sentence behind a refusal; else nothing."""
    own = {id(parameter) for parameter in parameters.values()}
    every = network.named_parameters(remove_duplicate=False)
    tied = sorted({repr(key.rpartition(".")[0]) for key, value in every if id(value) in own} - {repr(name)})
    return f" That its parameters are tied to {', '.join(tied)[:200]} is no obstacle: those may stay." if tied else ""
