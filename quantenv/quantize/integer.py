"""The quantized network in integer arithmetic: what deployment computes, on oneDNN's int8 kernels.

Stored tensors are uint8 codes (the grid's whole number minus its lowest), weights int8 whole numbers of however few
bits, sums int32. A layer and the site behind it are one kernel call that rescales, rounds and clamps on the way out.
Everything else (adds, pools, other float operations) is computed in float from decoded codes and encoded again, as the
float backend computes it; sums in blocks that stay in the processor's cache. The kernels are torch's own, so nothing
more is installed, and they are faster here than their float counterparts by 5-10 times where the CPU has VNNI; without
it they may saturate 16-bit sums, so the backend is refused there.
"""

import functools
import operator
from collections.abc import Sequence

import torch
from torch import fx, nn

from quantenv.errors import QuantenvError
from quantenv.quantize.network import (
    Bits,
    QuantizedNetwork,
    Setting,
    Switched,
    SwitchedLayer,
    SwitchedSite,
    WeightBits,
    keep,
)
from quantenv.quantize.quantizers import Codebook, Grid

#: Calls that may move codes as they are; max pools and padding move decoded values instead.
_CODE_MOVES = {
    operator.getitem,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
}
_CODE_MOVE_METHODS = {"flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"}
_CODE_MOVE_MODULES = (nn.Flatten, nn.Identity, nn.Dropout)
#: Targets of nodes that add two tensors, by kind of node.
_SUMS = {"call_function": (operator.add, torch.add), "call_method": ("add",)}
#: Values of a sum that each thread computes at a time: 512 KiB of floats. Those of a batch of 64 images of ResNet-20's
#: first stage, all at once, took twice as long on one core and slowed the other one down.
BLOCK = 1 << 17


@functools.cache
def integer_obstacle() -> str | None:
    """Says why the integer backend cannot run here, or returns None if it can.

    The kernels are tried on a sum that saturates in 16 bits and must come out exact.
    """
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")):
        return "this CPU has no VNNI instructions"
    codes = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.full((8, 64), 127, dtype=torch.int8)
    ones, zeros = torch.ones(8), torch.zeros(8, dtype=torch.int32)
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        sums = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return f"torch {torch.__version__} lacks the int8 kernels ({str(error).splitlines()[0]})"
    return None if bool((sums == 64 * 255 * 127).all()) else "the int8 kernels saturate on this CPU"


def encode(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the uint8 codes of a float tensor: grid number minus ``grid.low`` (sign grids: 0 and 2)."""
    if grid.sign:
        return (x >= 0).to(torch.uint8).mul_(2)
    return x.div(grid.scale).round_().clamp_(grid.low, grid.high).sub_(grid.low).to(torch.uint8)


def decode(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the float32 values of uint8 codes."""
    values = codes.float()
    if grid.low:
        values = values.add_(grid.low)
    return values.mul_(grid.scale)


class IntegerNetwork(QuantizedNetwork):
    """A `QuantizedNetwork` in integer arithmetic; same allocations, same logits up to rounding ties.

    Raises:
        QuantenvError: If the kernels cannot run here; see `integer_obstacle`.
    """

    value_bytes = 1

    def _build(self) -> fx.GraphModule:
        if (obstacle := integer_obstacle() or self.calibration.scheme.integer_obstacle) is not None:
            raise QuantenvError(f"The integer backend cannot run here: {obstacle}. Use backend 'float'.")
        return _to_integers(super()._build())


class IntegerLayer(Switched):
    """A layer, with the site behind it if nothing else reads the layer's output: one int8 kernel call."""

    def __init__(self, layer: SwitchedLayer, target: SwitchedSite | None) -> None:
        super().__init__()
        self._layer, self._target = (layer,), (target,)  # in tuples: not submodules
        self._packed: dict[tuple[WeightBits, int], tuple[torch.Tensor, torch.Tensor]] = {}  # weights and scales

    @property
    def layer(self) -> SwitchedLayer:
        """The layer in float, which knows bits and grids."""
        return self._layer[0]

    @property
    def output(self) -> Grid | None:
        """The grid of the codes that it puts out; None if it puts out float sums."""
        return self._output

    def setting(self, bits: Bits) -> Setting:
        """Returns the layer's setting, and the target's."""
        (target,) = self._target
        return self.layer.setting(bits) + (target.setting(bits) if target is not None else ())

    def select(self, setting: Setting) -> None:
        """Chooses packed weights, the input's grid and the output's."""
        layer = self.layer
        weight_bits, activation_bits, stored_bits, rest = layer.take(setting)
        self._stored, self._input = layer.source.grids[stored_bits], layer.source.grids[activation_bits]
        self._recode = activation_bits < stored_bits
        if (weight_bits, activation_bits) not in self._packed:
            packed = self._pack(weight_bits, activation_bits)
            keep(self._packed, (weight_bits, activation_bits), packed, len(layer.grids) ** 2 + layer.mixtures)
        _, self._bias = layer.rounded(weight_bits)
        self._weight, self._weight_scale = self._packed[weight_bits, activation_bits]
        self._zeros = torch.zeros(len(self._weight_scale), dtype=torch.int32)
        self._input_scale = float(self._input.scale)
        (target,) = self._target
        self._output = target.grids[rest[0]] if target is not None else None
        # The sign of a sum is no rescaling: taken from the float sum.
        self._in_kernel = self._output is not None and not self._output.sign

    def _pack(self, weight_bits: WeightBits, activation_bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        layer, grid = self.layer, self.layer.rounding(weight_bits)
        assert not isinstance(grid, Codebook)  # which were refused when the network was made
        codes = layer.rounded(weight_bits)[0].div(torch.where(grid.scale > 0, grid.scale, 1.0)).round()
        scales = grid.scale.flatten().contiguous()
        weight = codes.to(torch.int8).contiguous()
        if layer.convolution is None:
            packed = torch.ops.onednn.qlinear_prepack(weight, None)
        else:
            stride, padding, dilation, groups = layer.convolution
            source = layer.source.grids[activation_bits]
            packed = torch.ops.onednn.qconv_prepack(
                weight, scales, float(source.scale), -source.low, stride, padding, dilation, groups
            )
        return packed, scales

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Maps codes (B, C, H, W) or (B, F) to codes, or to float sums where no site follows."""
        if self._recode:
            codes = encode(decode(codes, self._stored), self._input)
        scale, zero, kind = (
            (float(self._output.scale), -self._output.low, torch.uint8)
            if self._in_kernel and self._output is not None
            else (1.0, 0, torch.float32)
        )
        inputs = (codes, self._input_scale, -self._input.low, self._weight, self._weight_scale, self._zeros)
        if self.layer.convolution is None:
            sums = torch.ops.onednn.qlinear_pointwise(*inputs, self._bias, scale, zero, kind, "none", [], "")
        else:
            sums = torch.ops.onednn.qconv2d_pointwise(
                *inputs, self._bias, *self.layer.convolution, scale, zero, kind, "none", [], ""
            )
        if self._output is None:
            return sums
        if not self._in_kernel:
            return encode(sums, self._output)
        span = self._output.high - self._output.low
        return sums if span == 255 else sums.clamp_(max=span)


class IntegerSum(Switched):
    """A sum of two tensors with the site behind it, block by block: the same values as all at once."""

    def __init__(self, terms: Sequence[SwitchedSite | None], target: SwitchedSite) -> None:
        """Makes the sum.

        Args:
            terms: Whose codes each term holds; None if it holds float values.
            target: The site behind.
        """
        super().__init__()
        self._terms, self._target = tuple(terms), (target,)

    def setting(self, bits: Bits) -> Setting:
        """Returns the stored bits of the coded terms and of the target."""
        sites = [site for site in self._terms if site is not None]
        return tuple(value for site in [*sites, *self._target] for value in site.setting(bits))

    def select(self, setting: Setting) -> None:
        """Chooses the grids."""
        stored = iter(setting)
        self._grids = [None if site is None else site.grids[next(stored)] for site in self._terms]
        self._output = self._target[0].grids[next(stored)]

    def forward(self, *terms: torch.Tensor) -> torch.Tensor:
        """Adds codes or float values (B, ...) to codes."""
        terms = torch.broadcast_tensors(*terms)
        codes = torch.empty_like(terms[0], dtype=torch.uint8)
        rows = max(1, torch.get_num_threads() * BLOCK * len(codes) // max(1, codes.numel()))
        for block, *parts in zip(*(each.split(rows) for each in (codes, *terms)), strict=True):
            first, second = (
                part if grid is None else decode(part, grid) for part, grid in zip(parts, self._grids, strict=True)
            )
            block.copy_(encode(first + second, self._output))
        return codes


class Encode(Switched):
    """Float values to the codes of a site."""

    def __init__(self, site: SwitchedSite) -> None:
        super().__init__()
        self._site = (site,)

    def setting(self, bits: Bits) -> Setting:
        """Returns the site's setting."""
        return self._site[0].setting(bits)

    def select(self, setting: Setting) -> None:
        """Chooses the site's grid."""
        self._grid = self._site[0].grids[setting[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encodes."""
        return encode(x, self._grid)


class Decode(Encode):
    """Codes of a site to float values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Decodes."""
        return decode(x, self._grid)


def _to_integers(source: fx.GraphModule) -> fx.GraphModule:
    """Rewrites the float graph of a `QuantizedNetwork` node by node."""
    modules = dict(source.named_modules())
    result, graph = fx.GraphModule(source, source.graph), fx.Graph()  # with its modules, parameters and buffers
    values: dict[fx.Node, fx.Node] = {}
    coded: dict[fx.Node, SwitchedSite] = {}  # nodes of the new graph that hold codes, and whose

    def insert(module: nn.Module, name: str, *arguments: fx.Node) -> fx.Node:
        result.add_submodule(name, module)
        return graph.call_module(name, arguments)

    def decoded(node: fx.Node) -> fx.Node:
        return insert(Decode(coded[node]), f"decode_{len(graph.nodes)}", node) if node in coded else node

    def site_behind(node: fx.Node) -> SwitchedSite | None:
        """Returns the site that alone reads a node, if one does."""
        users = list(node.users)
        behind = modules.get(str(users[0].target)) if len(users) == 1 and users[0].op == "call_module" else None
        return behind if isinstance(behind, SwitchedSite) else None

    for node in source.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, SwitchedSite):
            argument = values[node.args[0]]
            if coded.get(argument) is not module:  # otherwise the layer in front has encoded it already
                argument = insert(Encode(module), f"encode_{len(graph.nodes)}", decoded(argument))
                coded[argument] = module
            values[node] = argument
        elif isinstance(module, SwitchedLayer):
            argument = values[node.args[0]]
            if argument not in coded:
                argument = insert(Encode(module.source), f"encode_{len(graph.nodes)}", argument)
                coded[argument] = module.source
            target = site_behind(node)
            values[node] = insert(IntegerLayer(module, target), str(node.target).replace(".", "_"), argument)
            if target is not None:
                coded[values[node]] = target
        elif _is_sum(node) and (target := site_behind(node)) is not None:
            terms = [values[term] for term in node.args]
            summed = IntegerSum([coded.get(term) for term in terms], target)
            values[node] = insert(summed, f"sum_{len(graph.nodes)}", *terms)
            coded[values[node]] = target
        elif _moves_codes(node, module) and values[node.args[0]] in coded:
            values[node] = graph.node_copy(node, lambda n: values[n])
            coded[values[node]] = coded[values[node.args[0]]]
        else:
            values[node] = graph.node_copy(node, lambda n: decoded(values[n]))
    graph.lint()
    result.graph = graph
    result.delete_all_unused_submodules()
    return result


def _is_sum(node: fx.Node) -> bool:
    """Says whether a node adds two tensors and does nothing else."""
    terms = [value for value in node.args if isinstance(value, fx.Node)]
    return node.target in _SUMS.get(node.op, ()) and len(terms) == len(node.args) == 2 and not node.kwargs


def _moves_codes(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return isinstance(module, _CODE_MOVE_MODULES)
    return node.target in (_CODE_MOVES if node.op == "call_function" else _CODE_MOVE_METHODS)
