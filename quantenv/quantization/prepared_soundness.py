"""What is wrong with the content of a file that says it is a prepared network, as far as it can be told alone."""

import math
from collections.abc import Iterator

import torch

from quantenv.quantization.formats import weight_bounds
from quantenv.quantization.prepared import BITS, SITE_BOUNDS, SITE_SCALE, PreparedNetwork, name_of


def problems(prepared: PreparedNetwork) -> Iterator[str]:
    """Yields what is wrong, in words that follow "it is not sound:"."""
    for split, reference in prepared.about.references.items():
        if reference.correct > reference.samples or not math.isfinite(reference.loss):
            yield f"its reference on the split {split[:80]!r} cannot be"
    known = {SITE_SCALE, SITE_BOUNDS}
    if len(set(prepared.layers)) < len(prepared.layers) or len(set(prepared.sites)) < len(prepared.sites):
        yield "it names a layer or site twice"
    for name in prepared.layers:
        known |= {name_of(name, kind) for kind in _KINDS}
        yield from (f"{problem} of layer {name[:80]!r}" for problem in _layer_problems(prepared, name))
    yield from (f"it holds the unknown {name[:80]!r}" for name in prepared.tensors.keys() - known)
    yield from _site_problems(prepared)


#: What a layer may have.
_KINDS = ("codes", "indices", "scale", "values", "bias", "mean", "variance", "gain")


def _layer_problems(prepared: PreparedNetwork, name: str) -> Iterator[str]:
    given = {kind: prepared.tensors[name_of(name, kind)] for kind in _KINDS if name_of(name, kind) in prepared.tensors}
    grids = "codes" in given
    if grids == ("indices" in given) or ("values" in given) == grids:
        yield "it lacks or doubles the weights"
        return
    codes = given["codes" if grids else "indices"]
    if codes.dtype != (torch.int8 if grids else torch.uint8) or codes.dim() < 3 or len(codes) != len(BITS):
        yield "it does not hold eight options of the weights"
        return
    channels = codes.shape[1]
    shapes = {"scale": (8, channels) if grids else (channels,), "values": (2**9 - 2,), "bias": (8, channels)}
    for kind, value in given.items():
        if kind not in ("codes", "indices") and not _is_real(value, shapes.get(kind, (channels,))):
            yield f"it has no sound {kind}"
            return
    if "scale" not in given or ("mean" in given) != ("variance" in given):
        yield "it lacks numbers"
        return
    if (given["scale"] < 0).any() or (grids and (given["scale"][1:] == 0).any()):
        yield "a scale is not positive"
    if any((given[kind] < 0).any() for kind in ("variance",) if kind in given) or (
        "gain" in given and (given["gain"] <= 0).any()
    ):
        yield "a variance or gain is negative"
    for bits, each in zip(BITS, codes, strict=True):
        low, high = weight_bounds(bits) if grids else (0, 2**bits - 1)
        if each.numel() and not low <= int(each.min()) <= int(each.max()) <= high:
            yield f"a weight does not lie on the grid of {bits} bits"
    if grids and (codes[0] == 0).any():
        yield "a weight does not lie on the grid of 1 bits"


def _site_problems(prepared: PreparedNetwork) -> Iterator[str]:
    scale, bounds = (prepared.tensors.get(name) for name in (SITE_SCALE, SITE_BOUNDS))
    shape = (len(prepared.sites), len(BITS))
    if scale is None or bounds is None or not _is_real(scale, shape):
        yield "it lacks the grids of stored tensors"
    elif bounds.dtype != torch.int16 or bounds.shape != (*shape, 2):
        yield "it lacks the bounds of stored tensors"
    else:
        low, high = bounds.long().unbind(2)
        levels = torch.tensor([2**bits - 1 for bits in BITS])
        sign = torch.zeros(shape, dtype=torch.bool)
        sign[:, 0] = (low[:, 0] == -1) & (high[:, 0] == 1)
        if not (sign | ((low <= 0) & (high >= 0) & (high - low == levels))).all() or not (sign | (scale > 0)).all():
            yield "a grid of a stored tensor is none"
        if (scale < 0).any():
            yield "a scale of a stored tensor is negative"


def _is_real(value: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of single or double precision has a shape, and finite numbers only."""
    return value.dtype in (torch.float32, torch.float64) and value.shape == shape and bool(value.isfinite().all())
