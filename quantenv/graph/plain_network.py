"""The plain form of a network: what can be described, traced and quantized, and computes the same."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from quantenv.core.copies import copy_of
from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.expressed import expressed
from quantenv.graph.functional import DECIDED, UNTRACED, functional_graph
from quantenv.graph.layers_of_weights import layers_of_weights
from quantenv.graph.tracer import hook_name

#: Samples that a network and its plain form are compared on, and the difference that rounding may make, as a fraction
#: of the outputs' norm: numbers of half precision have 11 bits or 8.
CHECKED, TOLERANCE = 32, 0.01
#: What torch raises if a network does not run on an input.
RUNTIME_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError, NotImplementedError)
_CASTS = {"double", "half", "bfloat16"}


def plain_network(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """Brings a network into the form that everything else here works on.

    Its layers are torch's own (see `quantenv.graph.expressed`), weights that functions multiply by are layers, too (see
    `quantenv.graph.layers_of_weights`), what hooks compute is computed without them, all floats are of single
    precision, and ``squeeze()`` leaves a batch of one sample alone.

    Args:
        network: Any network; not changed.
        example: Inputs, float32 (B, ...), of which a few are looked at.

    Returns:
        The network itself if it is plain, otherwise a copy, in the same mode, which computes the same in eval mode.

    Raises:
        UnsupportedLayerError: If it cannot be brought into this form; the module is named.
    """
    example = example[:CHECKED] if len(example) > 1 else torch.cat([example, example])
    simple = expressed(network)
    try:
        graph = functional_graph(simple, example)
    except UnsupportedLayerError:
        return simple  # whoever needs the trace says why there is none
    if graph.meta[UNTRACED]:
        _check_hooks(simple, graph.meta[UNTRACED], example)
    rewritten = any(_is_called_otherwise(module) for module in simple.modules())
    rewritten |= graph.meta[DECIDED]
    rewritten |= layers_of_weights(graph, simple)
    rewritten |= _cast_to_single(graph)
    rewritten |= _squeeze_no_samples(graph, example)
    if rewritten:
        simple = fx.GraphModule(graph, graph.graph, type(simple).__name__).train(network.training)
    if simple is not network:
        _check_same(network, simple, example)
    return simple


def _is_called_otherwise(module: nn.Module) -> bool:
    """Whether calling a module runs more than the forward() of its class."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _cast_to_single(graph: fx.GraphModule) -> bool:
    """Has casts to other floats make single precision; says whether there were any."""
    changed = False

    def single(argument: Any) -> Any:
        nonlocal changed
        if isinstance(argument, torch.dtype) and argument.is_floating_point and argument != torch.float32:
            changed = True
            return torch.float32
        return argument

    for node in graph.graph.nodes:
        if node.op == "call_method" and node.target in _CASTS:
            node.target, changed = "float", True
        node.args = tuple(single(each) for each in node.args)
        node.kwargs = {key: single(each) for key, each in node.kwargs.items()}
    if changed:
        graph.float()  # constants, too
    return changed


def _squeeze_no_samples(graph: fx.GraphModule, example: torch.Tensor) -> bool:
    """Says which dimensions ``squeeze()`` takes away, which for a batch of one would be the batch, too."""
    bare = [
        node
        for node in graph.graph.nodes
        if (node.target == "squeeze" or node.target is torch.squeeze) and len(node.args) == 1 and not node.kwargs
    ]
    if not bare:
        return False
    shapes = _Shapes(graph)
    try:
        with torch.no_grad():
            shapes.run(example)
    except RUNTIME_ERRORS:
        return False  # it does not run on this input at all, which describing it says
    for node in bare:
        ones = tuple(place for place, size in enumerate(shapes.shapes[node.args[0]]) if size == 1)
        node.args = (node.args[0], ones)
    return True


class _Shapes(fx.Interpreter):
    """Remembers the shapes of tensors."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.shapes[n] = value.shape
        return value


def _check_hooks(network: nn.Module, untraced: Mapping[str, str], example: torch.Tensor) -> None:
    """Refuses hooks that could not be followed and put another value in a module's place."""
    watched, found = copy_of(network).eval(), set()

    def watch(hook: Callable[..., Any], key: str) -> Callable[..., Any]:
        @functools.wraps(hook)
        def watching(*arguments: Any) -> Any:
            value = hook(*arguments)
            if value is not None:
                found.add(key)
            return value

        return watching

    for name, module in watched.named_modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number, hook in hooks.items():
                hooks[number] = watch(hook, hook_name(hook, module, name))
    _outputs(watched, example)
    for key in sorted(found & untraced.keys()):
        raise UnsupportedLayerError(
            f"{key} changes values in a way that cannot be traced ({untraced[key]}), so that a quantized network would "
            "be without it. Compute with tensors alone in it, or remove it."
        )


def _check_same(network: nn.Module, plain: nn.Module, example: torch.Tensor) -> None:
    """Compares a network with its plain form, if it runs on the example at all."""
    expected = _outputs(network, example)
    if not isinstance(expected, torch.Tensor) or not torch.isfinite(expected).all():
        return  # describing or calibrating it says so
    found = _outputs(plain, example)
    same = isinstance(found, torch.Tensor) and found.shape == expected.shape
    difference = float((found - expected).norm() / expected.norm()) if same and expected.any() else 0.0
    if not same or not difference <= TOLERANCE:
        raise UnsupportedLayerError(
            f"Written with layers whose weights do not change, {type(network).__name__} puts out something else: at "
            f"most {TOLERANCE:.0%} was expected, {difference:.0%} found. Its forward() and its hooks must be functions "
            "of the input alone, the same for every batch, and change no view of a tensor in place."
        )


def _outputs(network: nn.Module, example: torch.Tensor) -> Any:
    """Runs a network in eval mode on inputs of its own precision; returns None if it does not run."""
    training = network.training
    kinds = {torch.float32: None, **{each.dtype: None for each in network.parameters() if each.is_floating_point()}}
    try:
        for kind in kinds:
            try:
                with torch.no_grad():
                    output = network.eval()(example.to(kind, copy=True))
            except RUNTIME_ERRORS:
                continue
            return output.float() if isinstance(output, torch.Tensor) else output
        return None
    finally:
        network.train(training)
