"""Modules as torch's own layers with plain weights: subclasses, parametrizations, masks, other precisions, wrappers."""

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm

from quantenv.core.copies import copy_of
from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.attention import with_plain_attention
from quantenv.graph.transformer import open_class

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
#: What every call of a module looks up, besides what its forward() does.
_CALLING = {"forward", "__call__", "_call_impl", "__getattr__"}


def expressed(network: nn.Module) -> nn.Module:
    """Expresses a network by torch's own layers, whose weights are parameters in single precision.

    Args:
        network: Any network; not changed.

    Returns:
        The network itself if there is nothing to express; otherwise a copy, in the same mode. In it

        - attention has its projections as layers (see `quantenv.graph.attention`), and encoders of torch compute
        openly;
        - a subclass of a layer of torch that computes what the layer does is that layer;
        - what makes a weight anew for each pass (masks of pruning, weight and spectral norms, parametrizations) has
          made it once;
        - floats are of single precision;
        - `torch.compile` and `nn.DataParallel` are taken off.

    Raises:
        UnsupportedLayerError: If an attention has a setting that is not supported, or a module is none of torch's own
            with real weights; the module is named.
    """
    inner = _unwrapped(network)
    _check_weights(inner)
    network = with_plain_attention(inner)
    changes = list(_changes(network))
    if not changes:
        return network
    if network is inner:
        network = copy_of(network)
    training = network.training
    network.eval()  # a spectral norm estimates its largest singular value again in training
    for module in list(network.modules()):
        _bake(module)
        kind = _simpler_class(module)
        if kind is not None:
            module.__class__ = kind
    if any(_is_other_float(tensor) for tensor in _tensors(network)):
        network.float()
    # A subclass of attention is attention only now.
    return with_plain_attention(network.train(training))


def _changes(network: nn.Module) -> Iterator[str]:
    """Yields what there is to express."""
    for module in network.modules():
        if _simpler_class(module) is not None:
            yield "class"
        if parametrize.is_parametrized(module) or any(_remakes(hook) for hook in _hooks(module)):
            yield "weight"
    if any(_is_other_float(tensor) for tensor in _tensors(network)):
        yield "precision"


def _check_weights(network: nn.Module) -> None:
    """Refuses modules whose weights are not there as real numbers.

    Raises:
        UnsupportedLayerError: If one is TorchScript, quantized already, lazy, or has complex weights.
    """
    for name, module in network.named_modules():
        what = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedLayerError(
                f"{what} is TorchScript, which cannot be traced again: give the nn.Module that it was made of."
            )
        if type(module).__module__.startswith(_QUANTIZED):
            raise UnsupportedLayerError(f"{what} is quantized by torch already: give the float network.")
        for key, parameter in module.named_parameters(recurse=False):
            if is_lazy(parameter):
                raise UnsupportedLayerError(
                    f"{what} is lazy and has no weights yet: run the network on a batch once, and load its weights."
                )
            if parameter.is_complex():
                raise UnsupportedLayerError(
                    f"The parameter {key!r} of {what} is complex, and networks here compute with real numbers: express "
                    "it by real and imaginary parts."
                )


def _unwrapped(network: nn.Module) -> nn.Module:
    while True:
        inner = getattr(network, "_orig_mod", None)  # of torch.compile, whose class is private
        if isinstance(network, nn.DataParallel):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def _simpler_class(module: nn.Module) -> type[nn.Module] | None:
    """Returns the class of torch that computes what the module's own class does, if that is another one."""
    kind = type(module)
    if (opened := open_class(kind)) is not None:
        return opened
    if (
        kind.__module__.startswith("torch.nn.")
        or isinstance(module, _CONTAINERS)
        or parametrize.is_parametrized(module)
    ):
        return None
    line = kind.__mro__
    base = next((each for each in line if each.__module__.startswith("torch.nn.")), nn.Module)
    if not issubclass(base, nn.Module) or base.forward is nn.Module.forward:
        return None
    own = {name for each in line[: line.index(base)] for name in vars(each)}
    if own & _names_read(base):
        return None
    return open_class(base) or base


def _names_read(kind: type[nn.Module]) -> set[str]:
    """Returns all names that a class's forward(), and the methods it calls, may look up."""
    names, pending = set(_CALLING), ["forward"]
    while pending:
        function = getattr(kind, pending.pop(), None)
        codes: list[Any] = [getattr(function, "__code__", None)]
        while codes:
            code = codes.pop()
            if isinstance(code, types.CodeType):
                pending += [name for name in code.co_names if name not in names]
                names.update(code.co_names)
                codes += code.co_consts
    return names


def _hooks(module: nn.Module) -> list[Any]:
    return list(module._forward_pre_hooks.values())


def _remakes(hook: Any) -> bool:
    """Whether a hook of torch makes a weight anew before each pass."""
    return isinstance(hook, prune.BasePruningMethod | WeightNorm | SpectralNorm)


def _bake(module: nn.Module) -> None:
    """Makes plain parameters of weights that are made anew for each pass."""
    if parametrize.is_parametrized(module):
        # torch's own removal takes the weight from the class, which the network that was copied shares.
        assert isinstance(module.parametrizations, nn.ModuleDict)
        made = {name: getattr(module, name) for name in module.parametrizations}
        module.__class__ = type(module).__mro__[1]
        del module._modules["parametrizations"]
        for name, value in made.items():
            module.register_parameter(name, nn.Parameter(value.detach().clone()))
    for hook in _hooks(module):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)


def _tensors(network: nn.Module) -> Iterator[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _is_other_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32
