"""Weights of a file into a network, whatever was wrapped around it when they were saved."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.core.weight_files import check_tensor, open_tensors

logger = logging.getLogger(__name__)

#: Keys under which checkpoints keep a network's tensors; the first one that is there is taken.
_PLAIN = ("state_dict", "model_state_dict", "model", "network", "net", "module", "weights", "params")
#: The same of moving averages, taken where there is nothing else.
_AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema")
#: Checkpoints within checkpoints that are looked into.
_DEPTH = 4
#: What wrappers of torch put into names, anywhere: compile, FSDP and activation checkpointing.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
#: Not weights: how many batches a norm has seen, which old files lack, and a moving average steps.
_COUNTS, _AVERAGED = "num_batches_tracked", "n_averaged"


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Reads a state dict into a network; nothing that the file may hold besides tensors is executed.

    Args:
        network: Takes the weights; not changed unless all of them fit.
        path: A file of `torch.save` or of safetensors: a state dict, or a checkpoint that holds one as ``state_dict``,
            ``model`` or a similar name. What torch.compile and FSDP put into names is dropped, and so is a prefix of
            all the network's names, such as ``module.`` of DataParallel or that of the network's attribute in a module
            of Lightning. Weights in half or double precision are converted.

    Raises:
        QuantenvError: If the file cannot be read or is damaged, or is no state dict of this network: names, shapes or
            kinds of numbers differ, or there are NaN or infinity.
    """
    state = _state_dict(open_tensors(path, "weights"), path)
    own = network.state_dict(keep_vars=True)
    names = {_unwrapped(name): name for name in own}
    state = _without_prefix(state, names, path)
    shared = {id(value): _unwrapped(name) for name, value in own.items() if _unwrapped(name) in state}
    for name, full in names.items():  # safetensors keeps tied weights once
        if name not in state and id(own[full]) in shared:
            state[name] = state[shared[id(own[full])]]
    lacking = {name for name in names.keys() - state.keys() if not name.endswith(_COUNTS)}
    for kind, odd in (("lack", lacking), ("hold the unknown", state.keys() - names.keys())):
        if odd:
            first, more = min(odd), f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            raise QuantenvError(
                f"The weights {path} do not fit {type(network).__name__}: they {kind} {first!r}{more}. "
                "Check the model's name and its number of classes."
            )
    fitting = {
        names[name]: check_tensor(
            f"The weights {path} do not fit {type(network).__name__}: {name!r}", value, own[names[name]].detach()
        )
        for name, value in state.items()
    }
    network.load_state_dict(fitting, strict=False)


def _state_dict(content: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """Returns the tensors by name that a file holds, without what wrappers put into names."""
    for _ in range(_DEPTH):
        inner = content if isinstance(content, Mapping) else {}
        held = [key for key in (*_PLAIN, *_AVERAGES) if isinstance(inner.get(key), Mapping)]
        if not held:
            break
        if any(key in _AVERAGES for key in held):
            logger.warning("%s holds %s: taking %r.", path, " and ".join(map(repr, held)), held[0])
        content = content[held[0]]
    expected = "expected tensors by name, as of network.state_dict()"
    if not isinstance(content, Mapping):
        raise QuantenvError(f"The weights {path} hold no state dict but a {type(content).__name__}: {expected}.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise QuantenvError(
                f"The weights {path} hold no state dict: {str(name)[:80]!r} is a {type(value).__name__}"
                f"{'' if isinstance(name, str) else f' under a {type(name).__name__}'}; {expected}."
            )
    state = {_unwrapped(name): value for name, value in content.items()}
    if len(state) < len(content):
        raise QuantenvError(f"The weights {path} hold a name twice, with and without a wrapper: save one network only.")
    return state


def _without_prefix(state: dict[str, torch.Tensor], names: Iterable[str], path: str | Path) -> dict[str, torch.Tensor]:
    """Returns what stands under the one prefix, often none, under which all the network's names are found."""
    wanted = {name for name in names if not name.endswith(_COUNTS)}
    if not wanted or wanted <= state.keys():
        return dict(state)
    first = min(wanted)
    prefixes = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    complete = [prefix for prefix in prefixes if all(prefix + name in state for name in wanted)]
    if len(complete) > 1:
        raise QuantenvError(
            f"The weights {path} hold the network under {' and under '.join(map(repr, complete))}: save one of them."
        )
    if not complete:  # for the message: what is lacking once a wrapper's name is dropped
        rest = {name for name in state if name != _AVERAGED}
        common = "module." if rest and all(name.startswith("module.") for name in rest) else ""
        return {name.removeprefix(common): state[name] for name in rest}
    (prefix,) = complete
    others = sorted(name for name in state if not name.startswith(prefix) and name != _AVERAGED)
    if others:
        logger.warning("%s: taking what is under %r, leaving out %s.", path, prefix, ", ".join(others)[:200])
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
