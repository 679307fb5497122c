"""Products of activations and constants, as functions and methods spell them, expressed by a layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from quantenv.graph.ops import OPS, LayerOp

#: Names of the arguments that count, in the order of their places.
_LINEAR = ("input", "weight", "bias")
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
#: Defaults of the settings among them.
_SETTINGS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
#: Convolutions by the name of their function.
_CONVOLUTIONS = {op.function.__name__: op for op in OPS.values() if op.dims}
_PRODUCT = ("input", "other")
_SUM = ("input", "mat1", "mat2")
_ATTENTION = ("query", "key", "value")
#: Other names that functions give their second operand.
_SECOND = ("mat2", "vec", "tensor2")
_ADDING = {"addmm", "addmv", "addbmm", "baddbmm"}
_MATRIX = {"matmul", "mm", "mv", "__matmul__"}

Method = tuple[Any, ...]
"""A method's name and arguments."""


@dataclass(frozen=True)
class LayerCall:
    """A layer, what it reads, and what moves the values before and after it."""

    layer: nn.Module
    source: fx.Node
    before: tuple[Method, ...] = ()
    after: tuple[Method, ...] = ()


def operands(node: fx.Node) -> list[fx.Node]:
    """Returns what a multiplication multiplies: no biases and masks."""
    name = _name(node)
    if name in _ADDING:
        found = _arguments(node, _SUM)
        chosen = [found.get(each) for each in ("mat1", "mat2")]
    elif name == "scaled_dot_product_attention":
        chosen = [_arguments(node, _ATTENTION).get(each) for each in _ATTENTION]
    elif name == "linear" or name.startswith("conv"):
        chosen = [_arguments(node, _LINEAR).get(each) for each in ("input", "weight")]
    else:
        chosen = list(node.all_input_nodes)
    return [each for each in chosen if isinstance(each, fx.Node)]


def as_layer(node: fx.Node, value: Callable[[fx.Node], Any]) -> LayerCall | None:
    """Expresses a multiplication by a constant.

    Args:
        node: Calls a function or method that multiplies; one of its operands is constant.
        value: Computes a constant node.

    Returns:
        The layer, or None if no Linear or convolution computes the same.
    """
    name = _name(node)
    try:
        if name == "linear":
            return _linear_call(node, value)
        if name in _CONVOLUTIONS:
            return _convolution_call(node, value, _CONVOLUTIONS[name])
        if name == "addmm":
            return _sum_call(node, value)
        if name == "einsum":
            return _einsum_call(node, value)
        if name in _MATRIX or name == "__rmatmul__":
            return _matrix_call(node, value, reverse=name == "__rmatmul__")
    except NotConstantError:
        return None
    return None


class NotConstantError(Exception):
    """What has to be constant is not."""


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)) if node.op == "call_function" else str(node.target)


def _arguments(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    found = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return {names[1] if key in _SECOND and key not in names else key: value for key, value in found.items()}


def _constant(argument: Any, value: Callable[[fx.Node], Any]) -> Any:
    """Returns an argument's value; of arguments in tuples, too."""
    return fx.node.map_aggregate(argument, lambda x: value(x) if isinstance(x, fx.Node) else x)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """Makes a Linear of a weight (O, I)."""
    if weight.dim() != 2:
        raise NotConstantError
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().expand(len(weight)).clone())
    return layer


def _linear_call(node: fx.Node, value: Callable[[fx.Node], Any]) -> LayerCall:
    given = _arguments(node, _LINEAR)
    weight, bias = (_constant(given.get(key), value) for key in ("weight", "bias"))
    return LayerCall(_linear(weight, bias), given["input"])


def _convolution_call(node: fx.Node, value: Callable[[fx.Node], Any], op: LayerOp) -> LayerCall:
    names = _TRANSPOSED if op.transposed else _CONVOLUTION
    given = _arguments(node, names)
    weight, bias = (_constant(given.get(key), value) for key in ("weight", "bias"))
    settings = {key: _constant(given.get(key, _SETTINGS[key]), value) for key in names[3:]}
    groups = settings["groups"]
    channels = (len(weight), weight.shape[1] * groups) if op.transposed else (weight.shape[1] * groups, len(weight))
    layer: Any = op.module(*channels, tuple(weight.shape[2:]), bias=bias is not None, **settings)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return LayerCall(layer, given["input"])


def _sum_call(node: fx.Node, value: Callable[[fx.Node], Any]) -> LayerCall:
    given = _arguments(node, _SUM)
    if {"alpha", "beta"} & given.keys():
        raise NotConstantError
    bias = _constant(given["input"], value)
    return LayerCall(_linear(_constant(given["mat2"], value).T, bias), given["mat1"])


def _matrix_call(node: fx.Node, value: Callable[[fx.Node], Any], reverse: bool) -> LayerCall:
    """Expresses ``x @ w`` and ``w @ x``, whose result is that of the transposed product, transposed."""
    given = _arguments(node, _PRODUCT)
    left, right = (given["other"], given["input"]) if reverse else (given["input"], given["other"])
    try:
        weight, source, behind = _constant(right, value), left, True
    except NotConstantError:
        weight, source, behind = _constant(left, value), right, False
    while weight.dim() > 2 and len(weight) == 1:
        weight = weight[0]
    swap: tuple[Method, ...] = () if behind else (("transpose", -2, -1),)
    if weight.dim() == 1:
        return LayerCall(_linear(weight[None]), source, swap, (("squeeze", -1),))
    return LayerCall(_linear(weight.T if behind else weight), source, swap, swap)


def _einsum_call(node: fx.Node, value: Callable[[fx.Node], Any]) -> LayerCall:
    """Expresses a sum over labels that activations and weights share and the result has not."""
    equation, *terms = node.args
    if len(terms) == 1 and isinstance(terms[0], tuple | list):
        terms = list(terms[0])
    labels, _, result = str(equation).replace(" ", "").partition("->")
    names = labels.split(",")
    if len(terms) != 2 or not result or len({*labels, *result} - {","} - {*map(chr, range(65, 123))}):
        raise NotConstantError
    try:
        weight, of_weight, source, of_source = _constant(terms[1], value), names[1], terms[0], names[0]
    except NotConstantError:
        weight, of_weight, source, of_source = _constant(terms[0], value), names[0], terms[1], names[1]
    shared = [each for each in of_source if each in of_weight]
    kept = [each for each in of_source if each not in of_weight]
    new = [each for each in of_weight if each not in of_source]
    unique = all(len(set(each)) == len(each) for each in (*names, result))
    if not unique or not shared or sorted(kept + new) != sorted(result) or not isinstance(source, fx.Node):
        raise NotConstantError
    matrix = weight.permute([of_weight.index(each) for each in (*new, *shared)])
    sizes = matrix.shape[: len(new)]
    matrix = matrix.flatten(len(new)).flatten(0, -2) if new else matrix.flatten()[None]
    before: list[Method] = [("permute", *(of_source.index(each) for each in (*kept, *shared)))]
    before += [("flatten", -len(shared))] if len(shared) > 1 else []
    after: list[Method] = [("unflatten", -1, tuple(sizes))] if new else [("squeeze", -1)]
    order = kept + new
    after.append(("permute", *(order.index(each) for each in result)))
    return LayerCall(_linear(matrix), source, tuple(before), tuple(after))
